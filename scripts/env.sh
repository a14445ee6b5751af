# shellcheck shell=bash
# Sourced by demo.sh and test.sh: what Open MPI must be told on one machine. Under Slurm and srun none of it is needed.

if [[ $(id -u) == 0 ]]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# More ranks than cores are allowed, and a rank's threads may use all cores, not only the one that mpirun would bind.
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
# Waiting threads sleep: other ranks want their core.
export OMP_WAIT_POLICY=passive
# So do ranks that wait for messages: a job beside others then ends in a third of the time.
export OMPI_MCA_mpi_yield_when_idle=1
# Ranks of one machine talk through its memory: looking for fast networks first takes longer than a small job.
export OMPI_MCA_pml=${OMPI_MCA_pml-ob1}
# Containers forbid reading another process's memory; Open MPI then prints a warning for each message.
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# Without ssh mpirun stops, although nothing here starts on another machine.
command -v ssh >/dev/null || export OMPI_MCA_plm=isolated
