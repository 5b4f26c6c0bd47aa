"""The few shapes that the benchmarks' plots are made of; coordinates in pixels from the upper left."""

from collections.abc import Iterable


def line(points: Iterable[tuple[float, float]], style: str) -> str:
    """Through (x, y) points; style: SVG attributes."""
    return f'<polyline fill="none" {style} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """anchor: which part of the words (start, middle, end) stands at x."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def frame(left: float, top: float, width: float, height: float) -> str:
    return f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>'


def page(width: float, height: float, parts: Iterable[str]) -> str:
    """A whole file, on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
