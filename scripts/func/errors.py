"""The one exception that users see."""


class BabyAIError(Exception):
    """A problem the user can mend, told in one sentence: which file, what is wrong, what to do."""
