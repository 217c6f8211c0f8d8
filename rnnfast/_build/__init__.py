"""What setup.py and `rnnfast doctor` share: finding compilers and torch, and planning the build.

Nothing here imports torch when it is imported; setup.py loads this folder by its path.
"""
