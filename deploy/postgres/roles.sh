#!/bin/bash
# One role and one database for each service that has tables. Run again, it gives the roles the passwords that lie in
# /run/secrets/postgres by then.
set -e

for name in gateway mailer leaderboard; do
    # The password does not show in the arguments of any process.
    { echo "\\set password \`cat /run/secrets/postgres/$name\`"; cat <<'SQL'; } |
SELECT format('CREATE ROLE %I LOGIN', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
        psql -X -q -v ON_ERROR_STOP=1 -v name="$name" -U postgres -d postgres
done
