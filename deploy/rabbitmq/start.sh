#!/bin/bash
# Gives the node its cookie and its place in the cluster, and becomes the server. HOME is the node's volume.
#
# A new node joins whichever other one answers. The first one founds the cluster if none does, and need not ever have
# company; the others wait, so that there are never two clusters. A node that joined takes a copy of every queue:
# RabbitMQ gives a queue copies on the nodes that are there when it is made.
set -euo pipefail
# The server itself, wherever the image has it: a wrapper before it would not pass on the signal to stop.
PATH=/opt/rabbitmq/sbin:/usr/lib/rabbitmq/bin:$PATH
node=rabbit@$HOSTNAME

another_that_answers() {
    local other
    for other in rabbitmq-1 rabbitmq-2 rabbitmq-3; do
        if [[ $other != "$HOSTNAME" ]] && timeout 3 bash -c ": <>/dev/tcp/$other/5672" 2>/dev/null; then
            echo "$other"
            return
        fi
    done
    return 1
}

# Whose volume is lost comes back as a new node: nobody may rely on what the former one had.
forget_former_self() {
    while rabbitmqctl -q -n "rabbit@$1" cluster_status --formatter json | grep -qF "\"$node\""; do
        rabbitmqctl -n "rabbit@$1" forget_cluster_node "$node" || sleep 5
    done
}

# Of every queue, and of what RabbitMQ knows about streams: that it copies by itself, within a minute.
has_all_copies() {
    local queues coordinator
    queues=$(rabbitmqctl -q list_queues -p bellhop --no-table-headers name members) || return
    coordinator=$(rabbitmq-streams -q coordinator_status --formatter json) || return
    [[ -n $queues && $coordinator == *"\"$node\""* ]] && ! grep -qvF "$node" <<<"$queues"
}

take_copies() {
    until has_all_copies 2>/dev/null; do
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
    until other=$(another_that_answers) || [[ $HOSTNAME == rabbitmq-1 ]]; do sleep 1; done
    [[ -z $other ]] || forget_former_self "$other"
elif [[ $HOSTNAME != rabbitmq-1 ]]; then
    other=rabbitmq-1 # in case that we were killed before we had joined; whoever has joined does not read it
fi
mkdir -p /tmp/conf.d
if [[ -n $other ]]; then
    printf '%s\n' "cluster_formation.peer_discovery_backend = classic_config" \
        "cluster_formation.classic_config.nodes.1 = rabbit@$other" \
        "cluster_formation.discovery_retry_limit = unlimited" >/tmp/conf.d/join.conf
fi
export RABBITMQ_CONFIG_FILES=/tmp/conf.d
take_copies &
exec rabbitmq-server
