#!/bin/bash
# Healthy: the node accepts AMQP connections, which begins when users and topology are loaded; it answers HTTP; and it
# has its replicas, see start.sh. In bash only: rabbitmq-diagnostics would start an Erlang VM every few seconds.
[[ -e /tmp/has-copies ]] || exit 1
exec 3<>/dev/tcp/127.0.0.1/5672 || exit 1
exec 3<>/dev/tcp/127.0.0.1/15692 || exit 1
printf 'GET /metrics/memory-breakdown HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r -t 4 line <&3
[[ $line == *" 200 "* ]]
