#!/bin/bash
# Writes the node's cookie, joins the cluster, and runs the server. HOME is the node's volume.
#
# A new node joins any other node that answers. If none does, the first node (rabbitmq-1) creates the cluster, which may
# stay a single node; the others wait, so that there are never two clusters. A node that has joined adds a replica of
# every queue: RabbitMQ creates replicas only on the nodes that exist when the queue is declared.
set -euo pipefail
# The server itself, in the folders where images have it: a wrapper script would not forward the signal to stop.
PATH=/opt/rabbitmq/sbin:/usr/lib/rabbitmq/bin:$PATH
node=rabbit@$HOSTNAME

find_running_node() {
    local other
    for other in rabbitmq-1 rabbitmq-2 rabbitmq-3; do
        if [[ $other != "$HOSTNAME" ]] && timeout 3 bash -c ": <>/dev/tcp/$other/5672" 2>/dev/null; then
            echo "$other"
            return
        fi
    done
    return 1
}

# A node that has lost its volume is a new node: its former replicas must be removed from the cluster.
remove_former_node() {
    while rabbitmqctl -q -n "rabbit@$1" cluster_status --formatter json | grep -qF "\"$node\""; do
        rabbitmqctl -n "rabbit@$1" forget_cluster_node "$node" || sleep 5
    done
}

# Replicas of every queue, and of the stream coordinator, which RabbitMQ adds by itself within a minute.
has_all_replicas() {
    local queues coordinator
    queues=$(rabbitmqctl -q list_queues -p bellhop --no-table-headers name members) || return
    coordinator=$(rabbitmq-streams -q coordinator_status --formatter json) || return
    [[ -n $queues && $coordinator == *"\"$node\""* ]] && ! grep -qvF "$node" <<<"$queues"
}

add_replicas() {
    until has_all_replicas 2>/dev/null; do
        sleep 5
        rabbitmq-queues -q grow "$node" all &&
            rabbitmq-streams -q add_replica --vhost bellhop notifier.log "$node" || true # again, until it has all
    done >/dev/null 2>&1
    touch /tmp/has-copies # healthcheck.sh looks for it
    echo "$node has a copy of every queue"
}

umask 077
rm -f "$HOME/.erlang.cookie"
cp /run/secrets/rabbitmq/erlang-cookie "$HOME/.erlang.cookie"
chmod 400 "$HOME/.erlang.cookie"
umask 022

other=
if [[ ! -d $HOME/mnesia/$node ]]; then
    until other=$(find_running_node) || [[ $HOSTNAME == rabbitmq-1 ]]; do sleep 1; done
    [[ -z $other ]] || remove_former_node "$other"
elif [[ $HOSTNAME != rabbitmq-1 ]]; then
    other=rabbitmq-1 # for a node that was killed before it had joined; a node that has joined ignores this
fi
mkdir -p /tmp/conf.d
if [[ -n $other ]]; then
    printf '%s\n' "cluster_formation.peer_discovery_backend = classic_config" \
        "cluster_formation.classic_config.nodes.1 = rabbit@$other" \
        "cluster_formation.discovery_retry_limit = unlimited" >/tmp/conf.d/join.conf
fi
export RABBITMQ_CONFIG_FILES=/tmp/conf.d
add_replicas &
exec rabbitmq-server
