"""Caches vision features: overlapping windows share most of their frames.

A vision tower processes a window in independent pieces: pairs of frames, or squares of one frame
(`Backbone.pieces`). The features of recent pieces are kept, and only new pieces go through the
tower. Pieces are compared pixel by pixel, so that the cache needs no information about clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from avomni_lib.training.backbones import Backbone


class FeatureCache:
    """Adds a feature cache to a loaded model's vision tower, whose weights must not change.

    Args:
        model: With or without an adapter.
        kind: Its backbone.

    Attributes:
        num_frames: Number of frames (or squares, if it takes these) that went through the tower in
            its last call; None if the backbone does not support caching.
    """

    def __init__(self, model: Any, kind: Backbone):
        self.kind = kind
        self.num_frames: int | None = 0 if kind.tower else None
        self._kept: dict[float, tuple[torch.Tensor, list[Any]]] = {}
        if not kind.tower:
            return
        (tower,) = (
            module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] == kind.tower
        )
        self._tower, tower.forward = tower.forward, self._see

    def _see(self, *pixels: torch.Tensor, **inputs: Any) -> Any:
        """Replaces the tower's `forward`, with the same output."""
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
            if not is_known and name in names[:place]:  # different pieces with the same sum
                return self._tower(rows, **inputs)
            if not is_known:
                new[name] = place
        self.num_frames = num_frames * len(new) // num
        if new:
            chosen = rows.reshape(num, -1, *rows.shape[1:])[list(new.values())].flatten(0, 1)
            made, self._shape = tree_flatten(
                self._tower(chosen, **self.kind.inputs_of(inputs, len(new)))
            )
            parts = [[None] * len(new) if leaf is None else leaf.chunk(len(new)) for leaf in made]
            for (name, place), part in zip(new.items(), zip(*parts, strict=True), strict=True):
                features = [leaf if leaf is None else leaf.clone() for leaf in part]
                self._kept[name] = pieces[place].clone(), features
        kept = [self._kept[name][1] for name in names]
        self._forget(names)
        joined = [None if leaf[0] is None else torch.cat(leaf) for leaf in zip(*kept, strict=True)]
        return tree_unflatten(joined, self._shape)

    def _forget(self, names: list[float]) -> None:
        """Keep the pieces of as many windows as a patch has frames: with an odd hop, a window
        shares its pairs of frames with the window before the last."""
        for name in dict.fromkeys(names):
            self._kept[name] = self._kept.pop(name)
        most = len(names) * self.kind.frames_per_patch
        while len(self._kept) > most:
            del self._kept[next(iter(self._kept))]
