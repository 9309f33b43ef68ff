#!/bin/sh
# Makes what is missing of the secrets of the nodes named. Run by the service `init`.
set -eu
cd /etc/roost/secrets
[ -f certs/ca.key ] || roost certs init
for node in "$@"; do
    [ -f "certs/$node.key" ] || roost certs node "$node"
done
[ -f keyring.toml ] || roost keys new
