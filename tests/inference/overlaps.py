"""Whether texts of a picture lie on one another."""

from matplotlib.figure import Figure


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """Labels, titles and legend entries of a figure that lie on one another."""
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        if not axes.axison:
            continue
        boxes += [t for t in (axes.title, axes.xaxis.label, axes.yaxis.label) if t.get_text()]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            boxes += [
                tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
    boxes += [text for legend in figure.legends for text in legend.get_texts()]
    shown = [
        (text.get_text(), text.get_window_extent())
        for text in boxes
        if text.get_text() and text.get_visible()
    ]
    return [
        (left, right)
        for i, (left, a) in enumerate(shown)
        for right, b in shown[i + 1 :]
        if a.overlaps(b)
    ]
