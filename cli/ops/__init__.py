"""Commands about how it is: status, top, doctor, server, cluster, list of calls."""
