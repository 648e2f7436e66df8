"""Tasks and methods of fine-tuning, by name."""

TASKS = ("cell-type", "gene", "regression", "multi-label")
ADAPTERS = ("lora", "dora", "ia3")
METHODS = ("full", "probe", *ADAPTERS)


def check_choices(task: str, method: str) -> None:
    """Refuse tasks and methods that do not exist."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}: it is one of {', '.join(METHODS)}")
    if task not in TASKS:
        raise ValueError(f"task {task!r}: the tasks are {', '.join(TASKS)}")


__all__ = ["ADAPTERS", "METHODS", "TASKS", "check_choices"]
