"""Features of pictures that were seen before: windows that overlap share most of their frames.

A vision tower sees a window in pieces that know nothing of each other: pairs of frames, or squares
of one frame (`Backbone.pieces`). What it made of the last ones is kept, and only new ones go
through it. Pieces are compared pixel by pixel, so that nothing has to be told about clips or ticks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from avomni_lib.training.backbones import Backbone


class Seen:
    """Lets a loaded model's vision tower skip what it has seen; its weights must not change.

    Args:
        model: With or without an adapter.
        kind: Its backbone.

    Attributes:
        num_frames: Frames (squares, where it is given these) that went through the tower at its
            last call; None where the family keeps nothing.
    """

    def __init__(self, model: Any, kind: Backbone):
        self.kind = kind
        self.num_frames: int | None = 0 if kind.tower else None
        self._kept: dict[float, tuple[torch.Tensor, list[Any]]] = {}
        if not kind.tower:
            return
        (tower,) = (
            each for name, each in model.named_modules() if name.rpartition(".")[2] == kind.tower
        )
        self._tower, tower.forward = tower.forward, self._see

    def _see(self, *pixels: torch.Tensor, **inputs: Any) -> Any:
        """The tower's own output, in whose place this stands."""
        import torch
        from torch.utils._pytree import tree_flatten, tree_unflatten

        rows = pixels[0] if pixels else inputs.pop("pixel_values")
        num, num_frames = self.kind.pieces(rows, inputs), self.kind.frames_seen(rows, inputs)
        self.num_frames = num_frames
        if num is None:
            return self._tower(rows, **inputs)
        pieces = rows.reshape(num, -1)
        names = pieces.sum(1, dtype=torch.float64).tolist()
        new: dict[float, int] = {}
        for place, (name, piece) in enumerate(zip(names, pieces, strict=True)):
            if name in new:
                is_known = torch.equal(pieces[new[name]], piece)
            else:
                is_known = name in self._kept and torch.equal(self._kept[name][0], piece)
            if not is_known and name in names[:place]:  # two pieces of one sum
                return self._tower(rows, **inputs)
            if not is_known:
                new[name] = place
        self.num_frames = num_frames * len(new) // num
        if new:
            chosen = rows.reshape(num, -1, *rows.shape[1:])[list(new.values())].flatten(0, 1)
            made, self._shape = tree_flatten(
                self._tower(chosen, **self.kind.inputs_of(inputs, len(new)))
            )
            parts = [[None] * len(new) if each is None else each.chunk(len(new)) for each in made]
            for (name, place), part in zip(new.items(), zip(*parts, strict=True), strict=True):
                own = [each if each is None else each.clone() for each in part]
                self._kept[name] = pieces[place].clone(), own
        found = [self._kept[name][1] for name in names]
        self._forget(names)
        joined = [None if each[0] is None else torch.cat(each) for each in zip(*found, strict=True)]
        return tree_unflatten(joined, self._shape)

    def _forget(self, names: list[float]) -> None:
        """Keep the pieces of as many windows as a patch has frames: with an odd hop the pairs of
        frames are those of the window before the last."""
        for name in dict.fromkeys(names):
            self._kept[name] = self._kept.pop(name)
        most = len(names) * self.kind.frames_per_patch
        while len(self._kept) > most:
            del self._kept[next(iter(self._kept))]
