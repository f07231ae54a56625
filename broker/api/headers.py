"""Headers of every answer: load nothing for it, show it in no frame, sniff no type."""

#: A content security policy that allows nothing. A page appends what it needs.
CLOSED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
#: The headers of every answer that does not set them itself.
EVERYWHERE = {
    "Content-Security-Policy": CLOSED,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
#: The same as they go over the wire.
RAW = tuple((name.lower().encode(), value.encode()) for name, value in EVERYWHERE.items())
