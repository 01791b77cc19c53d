"""The one exception that a program prints as a sentence."""


class UserError(ValueError):
  """A mistake the user can mend: found, expected, what to do; exit code 2."""
