"""A small invented world: the words and facts from which every training text is made.

Facts (which river runs through which town, who keeps which pet) are drawn once from a fixed seed, so that they can be
learned, while the documents of `corpus` combine them freely.
"""

from __future__ import annotations

import random

NAMES = ("Mira", "Tomas", "Lena", "Oskar", "Ida", "Felix", "Nora", "Emil", "Clara", "Jonas", "Vera", "Anton")
TOWNS = ("Arlen", "Bremor", "Calden", "Dorwick", "Elmsby", "Farrow", "Glenholt", "Harbeck")
ANIMALS = ("fox", "owl", "cat", "dog", "horse", "goat", "duck", "mouse", "bear", "wolf")
FRUITS = ("apple", "pear", "plum", "cherry", "grape", "lemon", "fig", "peach")
TOOLS = ("hammer", "saw", "rope", "lamp", "knife", "brush", "wheel", "basket")
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange")
FOODS = ("bread", "soup", "cheese", "honey", "rice", "pie", "fish", "cake")
RIVERS = ("Anner", "Belva", "Corin", "Doma", "Ebra", "Garr")
JOBS = ("baker", "smith", "teacher", "farmer", "sailor", "doctor", "miller", "painter")
PLACES = ("river", "mill", "forest", "market", "bridge", "garden", "hill", "well")
ADJECTIVES = ("old", "small", "clever", "tired", "brave", "quiet", "hungry", "young")
THINGS = (
    "price", "count", "total", "width", "height", "score", "weight", "size", "age", "level", "speed", "rate", "index",
    "limit",
)  # fmt: skip
CATEGORIES = {"animals": ANIMALS, "fruits": FRUITS, "tools": TOOLS, "colours": COLOURS, "foods": FOODS, "jobs": JOBS}

_draw = random.Random(1789)
TOWN_FACTS = {
    town: {
        "river": _draw.choice(RIVERS),
        "colour": _draw.choice(COLOURS),
        "food": _draw.choice(FOODS),
        "animal": _draw.choice(ANIMALS),
        "mayor": _draw.choice(NAMES),
    }
    for town in TOWNS
}
PERSON_FACTS = {
    name: {
        "job": _draw.choice(JOBS),
        "town": _draw.choice(TOWNS),
        "pet": _draw.choice(ANIMALS),
        "age": _draw.randrange(18, 80),
        "food": _draw.choice(FOODS),
    }
    for name in NAMES
}
