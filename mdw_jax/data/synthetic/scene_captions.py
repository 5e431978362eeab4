"""The captions of `scenes.py`: a small grammar with synonyms that states some, rarely all, of the facts of a scene.

Everything a caption states is true of its scene. Which facts, in which words and in which order, is drawn. Captions are
lower case and hold letters, spaces and commas only.
"""

# The keys are attribute values, and the rows the words for them. `_word` draws the first half the time.
SHAPES = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle", "wedge"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
}
COLORS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "turquoise": ("turquoise", "cyan"),
    "blue": ("blue", "cobalt"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
}
SIZES = {"large": ("big", "large", "huge"), "small": ("small", "tiny", "little")}
TEXTURES = {"plain": ("plain", "solid"), "striped": ("striped", "banded"), "dotted": ("dotted", "spotted")}
TEXTURES_AFTER = {"striped": ("with stripes", "with bands"), "dotted": ("with dots", "with spots")}
POSITIONS = {
    "top left": ("in the top left corner", "in the upper left corner", "at the top left", "at the upper left"),
    "top": ("at the top", "near the upper edge", "in the upper middle"),
    "top right": ("in the top right corner", "in the upper right corner", "at the top right", "at the upper right"),
    "left": ("on the left", "on the left side", "near the left edge"),
    "center": ("in the centre", "in the middle", "at the centre"),
    "right": ("on the right", "on the right side", "near the right edge"),
    "bottom left": ("in the bottom left corner", "in the lower left corner", "at the bottom left", "at the lower left"),
    "bottom": ("at the bottom", "near the lower edge", "in the lower middle"),
    "bottom right": ("in the bottom right corner", "in the lower right corner", "at the bottom right",
                     "at the lower right"),
}
BACKGROUNDS = {
    "black": ("black", "dark"),
    "gray": ("grey", "gray"),
    "white": ("white", "snowy"),
    "brown": ("brown", "earthy"),
    "navy": ("navy", "dark blue"),
    "mint": ("mint", "pale green"),
    "sand": ("sandy", "beige"),
    "lilac": ("lilac", "pale purple"),
}
BACKGROUND_KINDS = {
    "plain": ("plain", "bare"),
    "gradient": ("fading", "shaded"),
    "speckled": ("speckled", "mottled"),
    "striped": ("lined", "ruled"),
}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
    "near": ("next to", "beside", "close to"),
}
OPENINGS = ("there is ", "a picture of ", "this image shows ", "we can see ", "a drawing of ")
NUMBERS = {2: "two", 3: "three"}


def pick(rng, words):
    """One of `words`, all equally likely, by one `rng.random()`, whose stream numpy keeps stable."""
    return words[int(rng.random() * len(words))]


def _word(rng, words) -> str:
    return words[0] if rng.random() < 0.5 else pick(rng, words)


def _with_article(words: list[str]) -> str:
    text = " ".join(words)
    return ("an " if text[0] in "aeiou" else "a ") + text


def _thing_phrase(rng, thing, place_chance: float, alone: bool) -> tuple[str, bool]:
    """A noun phrase for `thing`, and whether it ends in a place; it has the color, the shape or both."""
    name_color = rng.random() < 0.93
    name_shape = not name_color or rng.random() < 0.92
    before, after = [], []
    if alone and rng.random() < 0.15:
        before.append("single")
    if rng.random() < 0.6:
        before.append(_word(rng, SIZES[thing.size]))
    if rng.random() < (0.2 if thing.texture == "plain" else 0.7):
        if thing.texture in TEXTURES_AFTER and rng.random() < 0.35:
            after.append(_word(rng, TEXTURES_AFTER[thing.texture]))
        else:
            before.append(_word(rng, TEXTURES[thing.texture]))
    if name_color:
        before.append(_word(rng, COLORS[thing.color]))
    before.append(_word(rng, SHAPES[thing.shape]) if name_shape else _word(rng, ("shape", "object", "thing")))
    placed = rng.random() < place_chance
    if placed:
        after.append(_word(rng, POSITIONS[thing.position]))
    return " ".join([_with_article(before), *after]), placed


def _relation_words(rng, one, other) -> str:
    """The relation of `one` to `other`, from their cells (row, column); all words that may be drawn are true."""
    down, across = one.row - other.row, one.column - other.column
    relations = []
    if across:
        relations.append("left" if across < 0 else "right")
    if down:
        relations.append("above" if down < 0 else "below")
    if max(abs(down), abs(across)) == 1 and rng.random() < 0.2:
        return _word(rng, RELATIONS["near"])
    return _word(rng, RELATIONS[pick(rng, relations)])


def _background_phrase(rng, scene) -> str:
    kind_chance = 0.2 if scene.background_kind == "plain" else 0.65
    words = [_word(rng, BACKGROUND_KINDS[scene.background_kind])] if rng.random() < kind_chance else []
    if not words or rng.random() < 0.8:
        words.append(_word(rng, BACKGROUNDS[scene.background]))
    words.append(_word(rng, ("background", "backdrop")))
    return f"{_word(rng, ('on', 'against'))} {_with_article(words)}"


def _listing(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def caption(rng, scene) -> str:
    """Draw one sentence about a scene.

    Args:
        rng: a numpy generator.
        scene: a `scenes.Scene`.
    """
    things = list(scene.things)
    if rng.random() < 0.3:
        things.insert(0, things.pop(int(rng.random() * len(things))))
    count = len(things)
    while len(things) > 1 and rng.random() < 0.25:
        things.pop()
    complete = len(things) == count
    related = len(things) > 1 and rng.random() < 0.55
    # A relation already places its second thing, so a place of its own is rarer there.
    chances = [0.65, 0.25 if related else 0.65, 0.65]
    placed_phrases = [_thing_phrase(rng, thing, chance, count == 1) for thing, chance in zip(things, chances)]
    phrases = [phrase for phrase, _ in placed_phrases]
    if related:
        joint = ", " if placed_phrases[0][1] else " "
        phrases[:2] = [f"{phrases[0]}{joint}{_relation_words(rng, things[0], things[1])} {phrases[1]}"]
    body = ", and ".join(phrases) if related else _listing(phrases)
    if complete and count > 1 and rng.random() < 0.2:
        body = f"{NUMBERS[count]} {_word(rng, ('shapes', 'objects', 'things'))}, {body}"
    elif rng.random() < 0.5:
        body = pick(rng, OPENINGS) + body
    if rng.random() < 0.65:
        background = _background_phrase(rng, scene)
        body = f"{background}, {body}" if rng.random() < 0.25 else f"{body}, {background}"
    return body
