#!/usr/bin/env bash
# Runs Slurm with two nodes on this machine, for tests and trials. Needs root; does not change /etc.
#
#   scripts/slurm_single_machine.sh install        installs Debian or Ubuntu packages
#   scripts/slurm_single_machine.sh start FOLDER   all its files are in FOLDER
#   export SLURM_CONF=FOLDER/slurm.conf            for sbatch, squeue, ...
#   scripts/slurm_single_machine.sh stop FOLDER
#
# Both nodes, n1 and n2, listen on 127.0.0.1 only. Each has two GPUs, which are simulated.
set -euo pipefail

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

install() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
}

configure() {
    # munged requires folders that only its user can write to, and a socket that all users can reach.
    mkdir -p "$folder"/{munge,socket,log,ctld}
    chmod 700 "$folder/munge"
    chmod 755 "$folder/socket"
    head -c 1024 /dev/urandom >"$folder/munge/key"
    chmod 600 "$folder/munge/key"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=single
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/socket/munge
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=16817
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
# Short, so that tests need not wait long for a time limit or a lost node.
KillWait=5
OverTimeLimit=0
SlurmdTimeout=15
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17001 CPUs=$cpus RealMemory=1000 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=17002 CPUs=$cpus RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
    # Slurm counts device files; it accepts regular files as such.
    touch "$folder"/gpu{0,1}
    echo "Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"
}

start() {
    configure
    munged --force --key-file="$folder/munge/key" --socket="$folder/socket/munge" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
    slurmctld -f "$folder/slurm.conf"
    node n1
    node n2
    for _ in $(seq 100); do
        if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 2 ]; then
            return
        fi
        sleep 0.2
    done
    echo "The nodes did not come up within 20 s; see $folder/log" >&2
    exit 1
}

node() {
    slurmd -f "$folder/slurm.conf" -N "$1"
}

stop() {
    scancel --me 2>/dev/null || true
    for _ in $(seq 75); do
        if [ -z "$(squeue --noheader 2>/dev/null)" ]; then
            break
        fi
        sleep 0.2
    done
    for file in "$folder"/slurmd.*.pid "$folder"/slurmctld.pid "$folder"/munge/pid; do
        if [ -f "$file" ]; then
            pid=$(cat "$file")
            kill "$pid" 2>/dev/null || true
            # Wait until its port is free.
            timeout 20 tail --pid="$pid" -f /dev/null || true
        fi
    done
}

[ $# -ge 1 ] || usage
if [ "$1" = install ]; then
    install
    exit
fi
[ $# -ge 2 ] || usage
mkdir -p "$2"
folder=$(realpath "$2")
cpus=$(nproc)
export SLURM_CONF=$folder/slurm.conf
case "$1" in
start) start ;;
node) node "${3:?which node}" ;;
stop) stop ;;
*) usage ;;
esac
