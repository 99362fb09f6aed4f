"""The DHT, in which colonies are found by their ids, and ports that routers map."""
