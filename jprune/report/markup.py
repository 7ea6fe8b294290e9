"""HTML that cannot be broken by what it shows: text is escaped unless it was made by `tag`."""

import html


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: str, **attributes: str | None) -> Markup:
    """An element; children that are plain text, and all attributes, are escaped.

    Args:
        name: of the element.
        *children: text or markup.
        **attributes: `class_` stands for `class`, `data_x` for `data-x`; None leaves one out.

    Example:
        >>> tag("p", "a < b ", tag("b", "c"), class_="note")
        '<p class="note">a &lt; b <b>c</b></p>'
    """
    written = "".join(
        # `class` is a keyword of Python, and hyphens cannot stand in a name.
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    # Children are escaped by `join` unless they are `Markup`: a name from a user's net cannot
    # become HTML.
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Text and markup one after the other.

    Example:
        >>> join("1 & 2", tag("i", "3"))
        '1 &amp; 2<i>3</i>'
    """
    return Markup("".join(c if isinstance(c, Markup) else html.escape(c) for c in children))


def table(head: list[str], rows: list[list[str]], **attributes: str | None) -> Markup:
    """A table whose first column names the rows.

    The heading stands with every cell too (`data-label`), for narrow screens on which rows are
    cards.
    """
    heading = tag("tr", *(tag("th", text, scope="col") for text in head))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(tag("td", cell, data_label=label) for cell, label in zip(row[1:], head[1:])),
        )
        for row in rows
    ]
    return tag("table", tag("thead", heading), tag("tbody", *body), **attributes)
