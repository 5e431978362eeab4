"""What the page is opened with: run directories, distilled sets and students, in any combination of one each."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mdw_jax.analysis.demo.browse import SetView, sets_of_run
from mdw_jax.analysis.demo.cards import Card
from mdw_jax.analysis.demo.query import Encoder, encoder_of_experts, encoder_of_student, nearest_hits
from mdw_jax.analysis.mismatches.find import Judged, judge, judged_by
from mdw_jax.analysis.mismatches.rows import image_name
from mdw_jax.config import resolve
from mdw_jax.errors import UserError
from mdw_jax.io.distilled_set import CARD, TENSORS
from mdw_jax.io.locate import refuse_unusable_path
from mdw_jax.pipeline.reopen import Reopened, Trained, reopen, trained_preset
from mdw_jax.reporting import figures

_STUDENT = "student.json"
DISTILLED, REAL = "the distilled pairs", "the training pairs of the run"
HITS = 12  # shown of a search


def kind_of(path) -> str:
    """ "run", "set" or "student". Raises UserError for a path that is none of them."""
    refuse_unusable_path(path)
    folder = Path(path)
    if (folder / _STUDENT).is_file() or folder.name == _STUDENT and folder.is_file():
        return "student"
    if (folder / CARD).is_file() and (folder / TENSORS).is_file():
        return "set"
    if (folder / "config.json").is_file():
        return "run"
    raise UserError(f"there is no run directory, distilled set or student in '{path}'; give one that mdw run, mdw export "
                    "or mdw train wrote." if folder.exists() else f"there is no '{path}'; check the path.")


class Demo:
    """All that the page shows. What is slow is computed when it is first asked for.

    Args:
        paths: a run directory, a distilled set, a student: one of each at most.
        preset: whose experts of the run; "": see `trained_preset`.

    Attributes:
        opened: the run; None without one.
        trained: the preset whose experts encode and judge; None without finished experts.
        sets: {label: its directory} of the distilled sets.
        notes: what is not there, and why, in sentences.

    Raises:
        UserError: a path is none of these, or two are of one kind.
    """

    def __init__(self, paths: Sequence[str], preset: str = ""):
        kinds = {}
        for path in paths:
            kind = kind_of(path)
            if kind in kinds:
                raise UserError(f"'{kinds[kind]}' and '{path}' are both of the kind '{kind}'; give one of each kind.")
            kinds[kind] = path
        self.paths: dict[str, str] = kinds
        self.notes: list[str] = []
        self.opened: Reopened | None = reopen(kinds["run"]) if "run" in kinds else None
        self.trained: Trained | None = self._trained(preset)
        self.sets = {"the set": Path(kinds["set"])} if "set" in kinds else {}
        self.sets |= dict(sets_of_run(kinds["run"])) if "run" in kinds else {}
        if not self.sets:
            self.notes.append("There is no distilled set here.")
        self.encoder: Encoder | None = self._encoder()
        if self.encoder is not None and not self.places:
            self.notes.append("Nothing is here to look through: give a distilled set or a run too (mdw demo STUDENT SET), "
                              "or search your photos with mdw search.")

    @property
    def title(self) -> str:
        """What the page is about."""
        words = ", ".join(f"{kind} {Path(path).resolve().name}" for kind, path in self.paths.items())
        return words[:1].upper() + words[1:]

    def _trained(self, preset: str) -> Trained | None:
        if self.opened is None:
            return None
        try:
            return trained_preset(self.opened, preset)
        except UserError as error:
            if preset:
                raise
            self.notes.append(f"No suspected mismatches: {error}")
            return None

    def _encoder(self) -> Encoder | None:
        if "student" in self.paths:
            from mdw_jax.export.student import load_student

            return encoder_of_student(load_student(self.paths["student"]))
        if self.opened is not None and self.trained is not None:
            return encoder_of_experts(self.trained, self.opened.prepared, resolve(self.opened.config))
        self.notes.append("Nothing here encodes a sentence or a photo: give a run with finished experts, or a student, "
                          "too.")
        return None

    @functools.cached_property
    def judged(self) -> Judged | None:
        """All training pairs as the experts see them; None without experts."""
        return judge(self.trained, self.opened.prepared) if self.trained and self.opened else None

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one for the life of the page
    def judged_by(self, way: str) -> Judged:
        """The training pairs with the probability by "division" or "similarity". Raises UserError without experts."""
        if self.judged is None or self.trained is None:
            raise UserError(" ".join(self.notes))
        return judged_by(self.judged, self.trained.run, way)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - one for the life of the page
    def view(self, label: str) -> SetView:
        """A distilled set by its label."""
        return SetView(self.sets[label], label)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def embedded_set(self, label: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(M, D) image and text embeddings of a set; None where nothing encodes it."""
        if self.encoder is None:
            return None
        view = self.view(label)
        try:
            return self.encoder.pixels(view.seen), self.encoder.texts(view.distilled.texts)
        except (UserError, TypeError, ValueError):  # made for other images or texts
            return None

    def fit(self, label: str) -> np.ndarray | None:
        """(M,) cosine of image and text of each pair of a set; None where nothing encodes it."""
        both = self.embedded_set(label)
        return None if both is None else np.einsum("md,md->m", *both)

    @functools.cached_property
    def embedded_pairs(self) -> tuple | None:
        """(N, D) training images and (K, D) training captions of the run by the encoder, arrays or rows that stay on the
        host; None where that is unknown."""
        if self.opened is None or self.encoder is None:
            return None
        if "student" not in self.paths:
            return (self.judged.images, self.judged.texts) if self.judged else None
        train, prepared = self.opened.prepared.pairs.train, self.opened.prepared
        images = [self.encoder.pixels(np.asarray(train.images[start:start + 512], np.float32) / 255)
                  for start in range(0, len(train.images), 512)]
        return np.concatenate(images), self.encoder.texts(np.asarray(prepared.texts.train))

    @property
    def places(self) -> list[str]:
        """What can be searched: labels of the sets, and the training pairs."""
        if self.encoder is None:
            return []
        return [*(f"{DISTILLED} of {label}" for label in self.sets), *([REAL] if self.opened is not None else [])]

    def by_sentence(self, place: str, sentence: str) -> tuple[list[Card], str]:
        """Images that a sentence describes best, and what must be known of the search.

        Raises:
            UserError: the sentence is empty, or cannot be encoded.
        """
        if not sentence.strip():
            raise UserError("write a sentence first.")
        query, said = self._encoding.sentences([sentence])
        return self._found(place, query, "image"), said

    def by_photo(self, place: str, data: bytes) -> tuple[list[Card], str]:
        """Captions that describe a photo best, with their images. Raises UserError where it cannot be read."""
        return self._found(place, self._encoding.photo(data), "caption"), ""

    def compare(self, data: bytes, sentences: str) -> tuple[list[tuple[str, float]], str]:
        """How well each sentence fits a photo.

        Args:
            data: an image file.
            sentences: one a line.

        Returns:
            (sentence, cosine) each, the best first, and what must be known of the sentences.

        Raises:
            UserError: there is no sentence, or something cannot be read.
        """
        lines = [line.strip() for line in sentences.splitlines() if line.strip()]
        if not lines:
            raise UserError("write some sentences first, one a line.")
        features, said = self._encoding.sentences(lines)
        hits = nearest_hits(self._encoding.photo(data), features, len(lines))
        return [(lines[hit.row], hit.cosine) for hit in hits], said

    @property
    def _encoding(self) -> Encoder:
        if self.encoder is None:
            raise UserError(" ".join(self.notes))
        return self.encoder

    def _found(self, place: str, query: np.ndarray, what: str) -> list[Card]:
        """Cards of the images, or of the captions, nearest to a query."""
        both = self.embedded_pairs if place == REAL else self.embedded_set(place.removeprefix(f"{DISTILLED} of "))
        if both is None:
            raise UserError(f"{place} cannot be compared with it: they are not of the kind that {self._encoding.name} "
                            "takes.")
        card = self._real_card if place == REAL else self._distilled_card(place.removeprefix(f"{DISTILLED} of "))
        return [card(hit.row, what, f"{hit.cosine:.2f}")
                for hit in nearest_hits(query, both[what == "caption"], HITS)]

    def _distilled_card(self, label: str) -> Callable[[int, str, str], Card]:
        view = self.view(label)
        return lambda row, what, cosine: Card(view.rgb[row], [(f"pair {row}, cosine {cosine}", view.captions[row])],
                                              f"distilled image {row}")

    def _real_card(self, row: int, what: str, cosine: str) -> Card:
        assert self.opened is not None
        pairs = self.opened.prepared.pairs
        train = pairs.train
        image_of = train.image_of if self.trained is None else self.trained.run.noise.image_of
        image = row if what == "image" else int(image_of[row])
        caption = int(np.flatnonzero(image_of == image)[0]) if what == "image" else row
        rgb = figures.to_rgb(train.images[np.array([image])], pairs.log_mel is not None)[0]
        return Card(rgb, [(f"cosine {cosine}, given caption", train.captions[caption]),
                          ("", image_name(train, image))],
                    image_name(train, image))
