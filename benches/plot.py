"""Bars in groups as an SVG that is read in light and in dark surroundings."""

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 56, 32
COLOURS = ("#c2410c", "#2563eb", "#0d9488", "#9ca3af", "#a855f7")
INK = "#6b7280"


def bars(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float | None]], limits: Sequence[float | None]) -> str:
    """One group a label, one bar a series in it (None: no bar); `limits` are drawn as lines across ours, the first series."""
    highest = max([value for values in [*series.values(), limits] for value in values if value is not None], default=1.0)
    step = _step(highest)
    top = step * -(-highest // step)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="600" fill="{INK}">{escape(title)}</text>',
    ]
    for line in (number * step for number in range(round(top / step) + 1)):
        parts.append(f'<path d="M{LEFT} {y(line):.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(line) + 4:.1f}" text-anchor="end" fill="{INK}">{line:g}</text>')
    group = (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    width = group * 0.8 / max(1, len(series))
    for place, label in enumerate(labels):
        start = LEFT + group * (place + 0.1)
        middle = LEFT + group * (place + 0.5)
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle" fill="{INK}">{escape(label)}</text>')
        for ix, values in enumerate(series.values()):
            value = values[place]
            if value is None:
                continue
            x = start + ix * width
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{y(value):.1f}" width="{width - 2:.1f}" height="{HEIGHT - BOTTOM - y(value):.1f}" '
                f'rx="2" fill="{COLOURS[ix]}"/>'
            )
            parts.append(
                f'<text x="{x + width / 2:.1f}" y="{y(value) - 4:.1f}" text-anchor="middle" fill="{INK}">{value:.2g}</text>'
            )
        limit = limits[place]
        if limit is not None:
            parts.append(f'<path d="M{start - 4:.1f} {y(limit):.1f}h{width + 8:.1f}" stroke="{INK}" stroke-width="2"/>')
    x = float(LEFT)
    for ix, name in enumerate(series):
        parts.append(f'<rect x="{x:.0f}" y="30" width="10" height="10" rx="2" fill="{COLOURS[ix]}"/>')
        parts.append(f'<text x="{x + 15:.0f}" y="39" fill="{INK}">{escape(name)}</text>')
        x += 34 + 6.6 * len(name)
    if any(limit is not None for limit in limits):
        parts.append(f'<path d="M{x:.0f} 35h12" stroke="{INK}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="39" fill="{INK}">limit of a verified call</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _step(highest: float) -> float:
    """A round distance between lines, so that there are four to eight of them."""
    step = 1.0
    while highest / step > 8:
        step *= 2
    while highest / step < 4:
        step /= 2
    return step
