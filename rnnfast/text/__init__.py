"""Language models and translation: data, models, training, generation, the command line.

Each module stands alone and is imported by its own name, for example
``from rnnfast.text.corpus import Corpus``. ``recipes`` holds the systems that docs/seeds.md
describes; ``cli_lm`` and ``cli_mt`` are the commands. Drawing the progress bar and the plots needs
``pip install rnnfast[text]``.
"""
