#!/bin/bash
# Gives the node its cookie and becomes the server. A node that joins the first one (FIRST_NODE) also takes a copy of
# every queue: RabbitMQ gives a queue copies on the nodes that are there when it is made, which was the first one alone.
# HOME is /var/lib/rabbitmq, the node's volume.
set -euo pipefail
# The server itself, wherever the image has it: a wrapper before it would not pass on the signal to stop.
PATH=/opt/rabbitmq/sbin:/usr/lib/rabbitmq/bin:$PATH
node=rabbit@$HOSTNAME
copied=/tmp/has-copies # healthcheck.sh looks for it

has_all_copies() {
    local queues
    queues=$(rabbitmqctl -q list_queues -p bellhop --no-table-headers name members) || return
    [[ -n $queues ]] && ! grep -qvF "$node" <<<"$queues"
}

take_copies() {
    until has_all_copies; do
        sleep 2
        rabbitmq-queues -q grow "$node" all &&
            rabbitmq-streams -q add_replica --vhost bellhop notifier.log "$node" || true # again, until it has all
    done >/dev/null 2>&1
    touch $copied
    echo "$node has a copy of every queue"
}

umask 077
rm -f "$HOME/.erlang.cookie"
cp /run/secrets/rabbitmq/erlang-cookie "$HOME/.erlang.cookie"
chmod 400 "$HOME/.erlang.cookie"
umask 022

if [[ -n ${FIRST_NODE:-} ]]; then
    # Of two new nodes the older one founds the cluster: this must be the first one, so it has to be up before we are.
    if [[ ! -d $HOME/mnesia/$node ]]; then
        until (: <>"/dev/tcp/$FIRST_NODE/5672") 2>/dev/null; do sleep 1; done
    fi
    take_copies &
fi
exec rabbitmq-server
