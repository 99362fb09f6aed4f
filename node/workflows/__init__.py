"""Process graphs: submit, advance, grow, cancel."""
