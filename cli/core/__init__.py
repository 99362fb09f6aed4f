"""What commands share: session, client, output, inputs, TLS, key files."""
