"""The parts that commands share: session, client, output, inputs, TLS, key files."""
