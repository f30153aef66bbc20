"""Which layer of the teacher each layer of the student learns from.

Level: maths. Layers are counted from 1; 0 is the output of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hf_compress.registry import Registry

Pairs = list[tuple[int, int]]
LAYER_MAPS: Registry[Callable[[int, int], Pairs]] = Registry("layer map")


@LAYER_MAPS.register("uniform")
def uniform(student_layers: int, teacher_layers: int) -> Pairs:
    """Let layer m of M learn from layer m N / M of N, rounded, embeddings from embeddings.

    Source: Jiao et al. 2020, "TinyBERT", section 4.1.
    """
    pairs = [(0, 0)]
    return pairs + [(m, round(m * teacher_layers / student_layers)) for m in range(1, student_layers + 1)]


@LAYER_MAPS.register("last")
def last(student_layers: int, teacher_layers: int) -> Pairs:
    """Let the last layer learn from the last one, and nothing else.

    Source: Wang et al. 2020, "MiniLM", section 3.
    """
    return [(student_layers, teacher_layers)]


def explicit(pairs: Sequence[str], student_layers: int, teacher_layers: int) -> Pairs:
    """Read pairs such as "2:4", the student's layer first.

    Raises:
        ValueError: naming a pair that is malformed or out of range.
    """
    found = []
    for pair in pairs:
        student, colon, teacher = pair.partition(":")
        if not (colon and student.isdigit() and teacher.isdigit()):
            raise ValueError(f"a pair of layers is written 'student:teacher', found {pair!r}")
        if int(student) > student_layers or int(teacher) > teacher_layers:
            raise ValueError(
                f"{pair!r} names a layer that does not exist: the student has {student_layers} layers, the teacher "
                f"{teacher_layers}"
            )
        found.append((int(student), int(teacher)))
    return found


def kept(indices: Sequence[int]) -> Pairs:
    """Pair a student that was cut from its teacher with the layers it was cut from.

    Args:
        indices: of the teacher's layers that were kept, from 0, in order.
    """
    return [(0, 0)] + [(m, index + 1) for m, index in enumerate(indices, 1)]
