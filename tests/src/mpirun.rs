//! Starting programs as MPI jobs: Open MPI on a machine with fewer cores than ranks, as root or not, and never for ever.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// `mpirun FLAGS -n RANKS PROGRAM`, to which arguments can be added. A job that outlives `longest` is killed, and ends
/// with a status of its own (124).
pub fn command(flags: &[&str], ranks: usize, program: &Path, longest: Duration) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &longest.as_secs().to_string(), "mpirun"])
        .args(flags)
        .args(["-n", &ranks.to_string()])
        .arg(program)
        .envs([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
            ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
            ("OMPI_MCA_mpi_yield_when_idle", "1"),
            ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ]);
    command
}
