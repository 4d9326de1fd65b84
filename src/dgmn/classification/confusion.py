"""What a classifier takes for what."""

from collections.abc import Sequence

from torch import Tensor

from dgmn.training.task import Table

_ROWS = 100  # classes in the table of classes
_SQUARE = 20  # classes up to which the whole matrix is a table


def confusion_tables(confusion: Tensor, names: Sequence[str]) -> list[Table]:
    """A table of the classes, and the confusion matrix; of many classes, the worst and the most frequent mistakes.

    Args:
        confusion: (classes, classes), the number of images of the row's class that were predicted as the column's.
        names: names of the classes.
    """
    counts = confusion.cpu().double()
    right = counts.diagonal()
    recall, precision = (right / counts.sum(1)).tolist(), (right / counts.sum(0)).tolist()
    wrong = counts - right.diag()
    most, taken = (found.tolist() for found in wrong.max(1))
    order = list(range(len(names)))
    title = "class"
    if len(names) > _ROWS:
        order = sorted(order, key=lambda i: (recall[i] != recall[i], recall[i]))[:_ROWS]
        title = f"class (the {_ROWS} worst of {len(names)})"
    rows = [
        (
            names[i],
            int(counts[i].sum()),
            _percent(recall[i]),
            _percent(precision[i]),
            f"{names[int(taken[i])]} ({most[i]:.0f})" if most[i] else "",
        )
        for i in order
    ]
    tables: list[Table] = [((title, "images", "right", "precision", "most often taken for"), rows)]
    if len(names) <= _SQUARE:
        columns = [[int(n) for n in row] for row in counts.tolist()]
        header = ("true \\ predicted", *names)
        tables.append((header, [(name, *row) for name, row in zip(names, columns, strict=True)]))
        return tables
    values, places = wrong.flatten().topk(_SQUARE)
    mistakes = [
        (names[place // len(names)], names[place % len(names)], int(value))
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value
    ]
    return [*tables, (("true", "predicted", "images"), mistakes)] if mistakes else tables


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"
