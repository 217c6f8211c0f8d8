"""Language models on plain text: data, vocabulary, windows, model, training, generation.

Each module stands alone and is imported by its own name, for example
``from rnnfast.text.corpus import Corpus``. ``rnnfast.text.demo`` puts them together.
Drawing the progress bar and the plot needs ``pip install rnnfast[text]``.
"""
