//! What `campaign` can be told to do, a file each.

pub mod cuts;
pub mod damage;
pub mod hostile;
pub mod kernel;
pub mod kills;
pub mod limits;
pub mod planted;
pub mod syscalls;
pub mod threads;
