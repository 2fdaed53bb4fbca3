"""Values that no header of weights holds, by their key."""

DAMAGED = {
    "size": [0, -1, 3.5, None, True, 10**6, 10**12, "384", [384], float("nan")],
    "sources": [None, "montgomery", [], [1], {"a": 1}, [""], ["a", "a"]],
    "heads": ["a", [None], {"a": 1}, ["a", "b", "c"], [["a"]]],
    "normalisation": ["none", 1],
    "parameters": [-1, "many"],
    "validation": [0.9],
    "config": [["a"]],
    "films": [3],
    "licence": [{"a": 1}, [1]],
    "command": [1],
    "commit": [None],
    "built_in": [-1, 0.5],
    "quality": [
        None,
        3,
        [],
        {},
        {"why_not": 1},
        {"bias": "a", "features": {}},
        {"bias": 1.0, "features": {"doubt": [0, 1]}},
    ],
}
BAD_ARCHITECTURE = {
    "base_channels": [0, -1, 2.0, None, True, 10**6, 10**12, "16"],
    "depth": [0, 9, 10**9, [1]],
    "patch": [0, 10**6, None],
    "classes": [0, 10**9, "2"],
    "in_channels": [0, 10**9],
    "dims": [1, 2.0, "2", [2]],
    "norm": ["layer", None, ["batch"]],
    "up": [1],
    "conv": [{}],
    "surprise": [1],
}
BAD_SCREENER = {
    "size": [0, -1, 3.5, None, True, 10**6, 10**12, "384"],
    "variant": ["masked", 3, None],
    "temperature": [0, -1, None, "1", True, float("nan"), 10**9],
    "threshold": [-0.1, 2, None, "0.5", False, float("inf")],
}
BAD_CLASSIFIER = {
    "first": [-1, 7, 2.0, None, True, 10**6, "2", [1]],
    "last": [-1, 7, 5.0, None, True, 10**6, "5", [5]],
    "members": [0, -1, 2, None, True, 10**12],
    "surprise": [1],
}


def each(table: dict[str, list]) -> list[tuple[str, object]]:
    """A key and a value at a time."""
    return [(name, value) for name, values in table.items() for value in values]
