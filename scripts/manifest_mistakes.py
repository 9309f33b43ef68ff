"""Mistakes that scripts/check-manifests must find: planted one by one in a copy of the tree."""

import shutil, sys, tempfile
from pathlib import Path

# A file, what stands there, what is planted instead, and what must be said of it. At least one of each kind of check.
K, C = "config/kubernetes/", "config/compose/"
PLANTED = [
    ("config/cassandra.toml", "connections_per_node", "connection_per_node", "no key of config/node.toml"),
    ("config/cassandra.toml", 'keyspace = "roost"', "keyspace = 3", "must be str"),
    ("config/container/Dockerfile", "USER 10001:10001", "USER root", "USER must be a number"),
    ("config/container/Dockerfile", "STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL", "must be SIGTERM"),
    ("config/container/Dockerfile", 'ENTRYPOINT ["roost"]', "ENTRYPOINT roost", "JSON list"),
    ("config/container/Dockerfile", "--from=build", "--from=builder", "no such stage"),
    ("config/container/Dockerfile.dockerignore", "!Cargo.lock\n", "", "keeps it out"),
    (C + "compose.yaml", "restart: unless-stopped", "restarts: unless-stopped", "compose.yaml: services"),
    (C + "compose.yaml", "ROOST_NODE__ID: n2", "ROOST_NODE__ID: n1", "it must be n2"),
    (
        C + "compose.yaml",
        "ROOST_TLS__KEY: /etc/roost/secrets/certs/n3.key",
        "ROOST_TLS__KEYS: x",
        "ROOST_TLS__KEYS is no key",
    ),
    (C + "compose.yaml", "8003:8000", "8002:8000", "two services want one port"),
    (C + "compose.yaml", "8000/readyz", "8000/ready", "answered without a key"),
    (C + "compose.yaml", "8000/readyz", "8001/readyz", "the node listens on 8000"),
    (C + "compose.yaml", 'command: ["n1", "n2", "n3"]', 'command: ["n1", "n2"]', "init makes certificates"),
    (C + "compose.yaml", "  cassandra:\n  secrets:", "  secrets:", "which is no volume"),
    (C + "compose.yaml", "./init.sh:", "./start.sh:", "which is no file"),
    (
        C + "compose.yaml",
        ":?copy .env.example to .env and put a key of 16 or more characters into it",
        ":-",
        "must fail",
    ),
    (C + "compose.yaml", "stop_grace_period: 90s", "stop_grace_period: 10s", "a drain takes"),
    (C + "compose.scylla.yaml", "CONNECTIONS_PER_SHARD", "CONNECTIONS_PER_CORE", "no key of config/node.toml"),
    (C + "roost.toml", "store:9042", "cassandra:9042", "no service"),
    (C + ".env.example", "ROOST_API_KEY=", "ROOST_API_KEY=0123456789abcdef", "do not stand in the repository"),
    (K + "kustomization.yaml", "  - network.yaml\n", "", "is not listed"),
    (K + "statefulset.yaml", "minReadySeconds", "minReadySecond", "Kubernetes 1.30"),
    (K + "statefulset.yaml", "serviceName: roost-mesh", "serviceName: roost", "not headless"),
    (K + "statefulset.yaml", "httpGet: {path: /readyz", "httpGet: {path: /health", "must ask /readyz"),
    (
        K + "statefulset.yaml",
        "containerPort: 7000, protocol: UDP",
        "containerPort: 7000, protocol: TCP",
        "its ports are",
    ),
    (
        K + "statefulset.yaml",
        "terminationGracePeriodSeconds: 120",
        "terminationGracePeriodSeconds: 30",
        "a drain takes",
    ),
    (K + "statefulset.yaml", "key: api-keys", "key: api-key", "which is nowhere"),
    (K + "statefulset.yaml", "secretName: roost-certs", "secretName: roost-tls", "which is nowhere"),
    (K + "statefulset.yaml", "value: $(POD_IP):7000", "value: $(POD_ADDRESS):7000", "not defined before"),
    (K + "statefulset.yaml", "/certs/$(POD_NAME).key", "/certs/node.key", "holds"),
    (K + "statefulset.yaml", "replicas: 3", "replicas: 4", "roost-3"),
    (K + "statefulset.yaml", "drop: [ALL]", "drop: [NET_RAW]", "keeps capabilities"),
    (K + "statefulset.yaml", "{name: keyring, mountPath", "{name: keys, mountPath", "no volume of the pod"),
    (K + "statefulset.yaml", "ROOST_STORE__CASSANDRA__PASSWORD", "ROOST_STORE__PASSWORD", "no key of config/node.toml"),
    (K + "statefulset.yaml", "  replicas: 3", "  replicas: 3\n  replicas: 5", "stands twice"),
    (K + "services.yaml", "targetPort: http", "targetPort: web", "none of the pods'"),
    (K + "services.yaml", "  publishNotReadyAddresses: true\n", "", "not ready"),
    (K + "network.yaml", "port: 9042", "port: 9043", "no ports of cassandra"),
    (K + "network.yaml", "app.kubernetes.io/name: cassandra", "app.kubernetes.io/name: scylla", "are nowhere"),
    (K + "config.yaml", "roost-mesh:7000", "roost:7000", "are not the service"),
    (K + "config.yaml", "keyring/keyring.toml", "keyring/keys.toml", "which no ConfigMap or Secret"),
    (K + "config.yaml", "[store.cassandra]", "[store.casandra]", "no key of config/node.toml"),
    (K + "secrets.template.yaml", 'password: ""', "password: hunter2", "do not stand in the repository"),
    (
        "config/cassandra.md",
        "`store.cassandra.connections_per_node`",
        "`store.cassandra.connections`",
        "no key of config/node.toml",
    ),
    ("config/cassandra.md", "`store.max_queue`", "`store.queue_max`", "no key of config/node.toml"),
    ("config/cassandra.md", "`roost_store_waiting`", "`roost_store_wait`", "no metric of the program"),
    ("config/cassandra.md", "](cassandra.toml)", "](casandra.toml)", "no file"),
]


def all_found(top, problems_of):
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "tree"
        shutil.copytree(top, root, ignore=shutil.ignore_patterns("target", "node_modules", ".git"))
        before = problems_of(root)
        if before:
            print(f"check-manifests: without any planted mistake there are: {before}", file=sys.stderr)
            return False
        for path, there, planted, expected in PLANTED:
            file = root / path
            text = file.read_text()
            file.write_text(text.replace(there, planted, 1))
            found = problems_of(root) if there in text else ["what is to be replaced is not there"]
            file.write_text(text)
            if not any(expected in problem for problem in found):
                missed += 1
                print(
                    f"check-manifests: {path}: {there!r} → {planted!r} was not found; found: {found}", file=sys.stderr
                )
    print(f"check-manifests: {len(PLANTED) - missed} of {len(PLANTED)} planted mistakes were found")
    return missed == 0
