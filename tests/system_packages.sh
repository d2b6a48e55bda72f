#!/bin/sh
# Install what the tests drive for real, where that is possible; say what is left out where it is not.
missing=""
for pair in sshd:openssh-server tcsh:tcsh rsync:rsync ip:iproute2 slurmctld:slurm-wlm munged:munge slurmdbd:slurmdbd mariadbd:mariadb-server chromium:chromium chromedriver:chromium-driver; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || [ -x "/usr/sbin/${pair%%:*}" ] || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # A service that the package starts must not be running on its own: the tests start what they need.
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/tmp/system-packages.log 2>&1 && exit 0
    tail -n 5 /tmp/system-packages.log
fi
echo "not installed:$missing; the tests that need them are skipped"
