"""What is watched on a node with cards, and how: Prometheus, Graphite, Zabbix, and the files that they need (extra `watch`)."""
