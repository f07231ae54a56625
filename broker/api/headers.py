"""What every answer tells browsers: load nothing for it, show it in no frame, guess no type."""

#: A content security policy that allows nothing; a page names what it needs behind it.
CLOSED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: The headers of every answer that has none of its own by the same name.
EVERYWHERE = {
    "Content-Security-Policy": CLOSED,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: The same as they go over the wire.
RAW = tuple((name.lower().encode(), value.encode()) for name, value in EVERYWHERE.items())
