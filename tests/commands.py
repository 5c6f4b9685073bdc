"""Command lines, run in this process."""


class CommandLine:
    """A ``main``, called with arguments of any type. Unless it is ``quiet``, other lines may come before that of a refusal."""

    def __init__(self, main, *, quiet=True):
        self._main, self._quiet = main, quiet

    def __call__(self, *arguments):
        return self._main([str(argument) for argument in arguments])

    def refused(self, capsys, *arguments):
        """The one line of a refusal."""
        capsys.readouterr()
        assert self(*arguments) == 2
        *others, message = capsys.readouterr().err.splitlines()
        assert message.startswith("bilagrid: "), message
        assert not (self._quiet and others), others
        return message
