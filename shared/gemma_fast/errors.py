"""What can be wrong with the files of a model."""


class Unsupported(Exception):
    """The network or tokenizer has a part that is not computed here."""


class Damaged(Exception):
    """A file is damaged or incomplete, or does not fit the others; the message says what to do."""
