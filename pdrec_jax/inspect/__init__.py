"""One user of a finished run, explained: as text, and as a web page that stands by itself."""
