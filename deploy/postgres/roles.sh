#!/bin/bash
# Creates one role and one database for each service that has tables. A second run sets the passwords of all roles to
# those in /run/secrets/postgres.
set -e

# $1: file of the password, $2: role. Statements come on stdin, with :'name' and :'password'; the password does not
# show in the arguments of any process.
as_owner() {
    { echo "\\set password \`cat /run/secrets/postgres/$1\`"; cat; } |
        psql -X -q -v ON_ERROR_STOP=1 -v name="$2" -U postgres -d postgres
}

as_owner password postgres <<'SQL'
ALTER ROLE :"name" PASSWORD :'password';
SQL

for service in gateway mailer leaderboard; do
    as_owner $service $service <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
