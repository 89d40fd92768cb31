"""Monitoring of a GPU node: Prometheus, Graphite, Zabbix, and the files that they need (extra `watch`)."""
