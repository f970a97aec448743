"""The command line, `xattr-cuda`: one file a command, each a thin skin over `xattr_cuda.training` or `.bench`."""

import sys

import typer

from .._version import __version__
from ..extras import MissingPackageError
from ..training.errors import UserError
from .bench import bench
from .demo import demo
from .doctor import doctor
from .train import train

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = typer.Typer(
    name="xattr-cuda",
    help="Train neural networks with attribution priors, without double backward.",
    epilog="Start with: xattr-cuda demo",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(train)
app.command()(bench)
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xattr-cuda {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0, or 1 or 2 with one line on stderr, or 130 after Ctrl-C."""
    try:
        code = app(args=sys.argv[1:] or ["--help"], prog_name="xattr-cuda", standalone_mode=False)
    except (UserError, MissingPackageError) as error:
        _fail(str(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except OSError as error:
        _fail(f"{error.filename or 'file'}: {error.strerror or error}", 1)
    except Exception as error:
        # A mistake on the command line: the class's home differs between the releases of typer, its method does not.
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message().rstrip("."), 2)
    else:
        if code == INTERRUPTED:  # some releases of typer turn Ctrl-C into this exit code themselves
            _fail("interrupted", INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    print(f"xattr-cuda: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
