"""Environment of a process by a configuration of Accelerate, for launchers other than ``accelerate launch``.

``python -m cellglot.training.launch fsdp2.yaml`` prints it as ``export NAME=VALUE`` for a shell.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from cellglot.training.config import configs_folder


PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")


def accelerate_configs() -> Path:
    """Return the folder of the configurations for ``accelerate launch --config_file``, and of the SLURM script."""
    return configs_folder() / "accelerate"


def find_config(name: str | os.PathLike) -> Path:
    """Return a configuration of Accelerate: a file, or the name of one that comes with the package.

    Raises
    ------
    FileNotFoundError
        If there is none; the message lists those of the package.
    """
    shipped = {path.name: path for path in sorted(accelerate_configs().glob("*.yaml"))}
    path = Path(name)
    if path.exists():
        return path
    if str(name) not in shipped:
        raise FileNotFoundError(f"no configuration of Accelerate {name}; the package has {', '.join(shipped)}")
    return shipped[str(name)]


def environment(name: str | os.PathLike) -> dict[str, str]:
    """Return the variables that ``accelerate launch --config_file NAME`` sets for its processes.

    Variables that count processes are not among them: the launcher sets ``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``,
    ``MASTER_ADDR`` and ``MASTER_PORT``.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    given = ["--config_file", str(find_config(name)), "-m", "cellglot"]
    arguments: Any = launch_command_parser().parse_args(given)
    arguments, defaults, own_precision = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        fields = [*defaults.deepspeed_config, *(["mixed_precision"] if own_precision else [])]
        arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
    found = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    own = {key: str(value) for key, value in found.items() if key.startswith(PREFIXES)}
    return {key: value for key, value in own.items() if os.environ.get(key) != value}


def main() -> None:
    """Print the environment of a configuration."""
    if len(sys.argv) != 2:
        raise SystemExit("name one configuration of Accelerate, such as fsdp2.yaml")
    try:
        found = environment(sys.argv[1])
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    for name, value in sorted(found.items()):
        print(f"export {name}={shlex.quote(value)}")


__all__ = ["accelerate_configs", "environment", "find_config"]


if __name__ == "__main__":
    main()
