"""The connection to etcd: gRPC over HTTP/2 on trio, dialled, kept up, and its calls."""
