"""What is one large product over all steps, before and after the recurrent loop: projections of the
input, and the gradients of input and weights. On the CPU our own kernel multiplies where it is
faster, else torch; sums have a fixed order.

Shapes in this folder: T steps, B batch, I input size, H hidden size, P width of h, G gates, S slots
of a unit.
"""
