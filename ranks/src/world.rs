//! Which rank this process is, of how many, and where they meet: from the environment.

use super::error::RankError;
use super::nodes::first_host;

/// The token without which a rank is not let in.
pub const SECRET: &str = "FERROTYPE_SECRET";

/// torchrun's names, in the order of [`World`]'s fields.
const TORCHRUN: [&str; 5] = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"];

/// One process among several.
#[derive(Clone, PartialEq, Eq)]
pub struct World {
    /// From 0 to below `size`.
    pub rank: usize,
    pub size: usize,
    /// Its number on its machine, from 0: which device it takes.
    pub local_rank: usize,
    /// How many ranks its machine has, this one included; where nobody says so, as many as there are.
    pub local_size: usize,
    /// Where rank 0 is found: a name or an address.
    pub master_address: String,
    pub master_port: u16,
    /// What all ranks know and strangers do not. It goes over the network as it is: it keeps strangers out of a network that
    /// can be trusted otherwise, and is no encryption.
    pub secret: Option<String>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .field("local_rank", &self.local_rank)
            .field("local_size", &self.local_size)
            .field("master_address", &self.master_address)
            .field("master_port", &self.master_port)
            .field("secret", &self.secret.as_ref().map(|_| "…"))
            .finish()
    }
}

impl World {
    /// What torchrun's variables say, else Slurm's; `None` where this process is the only one.
    pub fn from_environment() -> Result<Option<Self>, RankError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`from_environment`](Self::from_environment), with variables from elsewhere. One that is empty is not set.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, RankError> {
        let variables =
            Variables(&|name| variable(name).map(|value| value.trim().to_owned()).filter(|v| !v.is_empty()));
        let torchrun = ["RANK", "WORLD_SIZE", "LOCAL_RANK"].iter().any(|name| variables.get(name).is_some());
        let world = if torchrun {
            Some(variables.torchrun()?)
        } else if variables.get("SLURM_NTASKS").is_some() {
            variables.slurm()?
        } else if TORCHRUN.iter().any(|name| variables.get(name).is_some()) {
            return Err(variables.missing(&TORCHRUN));
        } else {
            None
        };
        if let Some(World { rank, size, .. }) = &world
            && rank >= size
        {
            let name = if torchrun { "RANK" } else { "SLURM_PROCID" };
            return Err(impossible(name, &rank.to_string(), format!("a number below the number of ranks, {size}")));
        }
        Ok(world)
    }
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn torchrun(&self) -> Result<World, RankError> {
        let [rank, size, local_rank, address, port] = TORCHRUN.map(|name| self.get(name));
        let (Some(rank), Some(size), Some(local_rank), Some(master_address), Some(port)) =
            (rank, size, local_rank, address, port)
        else {
            return Err(self.missing(&TORCHRUN));
        };
        let port = port_number("MASTER_PORT", &port)?;
        let size = number("WORLD_SIZE", &size)?;
        let local_size = self.get("LOCAL_WORLD_SIZE").map(|value| number("LOCAL_WORLD_SIZE", &value)).transpose()?;
        // torchrun itself listens on MASTER_PORT then, for its workers' stores.
        let taken = self.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(World {
            rank: number("RANK", &rank)?,
            size,
            local_rank: number("LOCAL_RANK", &local_rank)?,
            local_size: local_size.unwrap_or(size),
            master_address,
            master_port: if taken { port.checked_add(1).unwrap_or(port - 1) } else { port },
            secret: self.get(SECRET),
        })
    }

    fn slurm(&self) -> Result<Option<World>, RankError> {
        let names = ["SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"];
        let [size, rank, local_rank] = names.map(|name| self.get(name));
        let size = number("SLURM_NTASKS", &size.unwrap_or_default())?;
        if size <= 1 {
            return Ok(None);
        }
        let (Some(rank), Some(local_rank)) = (rank, local_rank) else {
            return Err(self.missing(&names));
        };
        Ok(Some(World {
            rank: number("SLURM_PROCID", &rank)?,
            size,
            local_rank: number("SLURM_LOCALID", &local_rank)?,
            local_size: self.slurm_local_size().unwrap_or(size),
            master_address: self.slurm_master()?,
            master_port: self.slurm_port()?,
            secret: self.get(SECRET),
        }))
    }

    /// The most tasks that a node has: `4(x2),3` are three nodes.
    fn slurm_local_size(&self) -> Option<usize> {
        let list = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"].into_iter().find_map(|name| self.get(name))?;
        list.split(',').filter_map(|nodes| nodes.split('(').next()?.trim().parse().ok()).max()
    }

    /// The first node is where Slurm puts task 0. The launching node is that one only where srun runs inside of a batch script,
    /// so it comes last.
    fn slurm_master(&self) -> Result<String, RankError> {
        if let Some(address) = self.get("MASTER_ADDR") {
            return Ok(address);
        }
        let lists = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"];
        if let Some((name, list)) = lists.into_iter().find_map(|name| Some((name, self.get(name)?))) {
            let host = first_host(&list);
            return host.ok_or_else(|| impossible(name, &list, "a list of nodes, such as node[003-007,9]".to_owned()));
        }
        let names = ["SLURM_NTASKS", "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR", "MASTER_ADDR"];
        self.get("SLURM_LAUNCH_NODE_IPADDR").ok_or_else(|| self.missing(&names))
    }

    /// Jobs that share a node get ports of their own.
    fn slurm_port(&self) -> Result<u16, RankError> {
        if let Some(port) = self.get("MASTER_PORT") {
            return port_number("MASTER_PORT", &port);
        }
        let Some((name, job)) = ["SLURM_JOB_ID", "SLURM_JOBID"].into_iter().find_map(|n| Some((n, self.get(n)?)))
        else {
            return Err(self.missing(&["SLURM_NTASKS", "SLURM_JOB_ID", "MASTER_PORT"]));
        };
        let job: u64 =
            job.parse().map_err(|_error: std::num::ParseIntError| impossible(name, &job, "a number".to_owned()))?;
        Ok(20_000 + (job % 20_000) as u16)
    }

    fn missing(&self, names: &[&str]) -> RankError {
        let (set, missing): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| self.get(name).is_some());
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        RankError::VariablesMissing { set: owned(set), missing: owned(missing) }
    }
}

fn number(name: &str, value: &str) -> Result<usize, RankError> {
    // A world of more has other troubles; and its ranks would not fit the frames.
    let parsed = value.parse::<usize>().ok().filter(|number| *number <= 100_000);
    parsed.ok_or_else(|| impossible(name, value, "a number from 0 to 100000".to_owned()))
}

fn port_number(name: &str, value: &str) -> Result<u16, RankError> {
    let parsed = value.parse::<u16>().ok().filter(|port| *port > 0);
    parsed.ok_or_else(|| impossible(name, value, "a port, from 1 to 65535".to_owned()))
}

fn impossible(name: &str, value: &str, expected: String) -> RankError {
    RankError::Variable { name: name.to_owned(), value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &str) -> Result<Option<World>, String> {
        let set: Vec<_> = variables.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        let get = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        World::from_variables(get).map_err(|error| error.to_string())
    }

    fn expected(rank: usize, size: usize, local_rank: usize, address: &str, master_port: u16) -> World {
        let master_address = address.to_owned();
        World { rank, size, local_rank, local_size: size, master_address, master_port, secret: None }
    }

    #[test]
    fn torchrun_comes_first() {
        let variables = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=29500";
        assert_eq!(world(variables), Ok(Some(expected(3, 8, 1, "a", 29500))));
        let both = format!("{variables} SLURM_NTASKS=2 SLURM_PROCID=0");
        assert_eq!(world(&both), Ok(Some(expected(3, 8, 1, "a", 29500))));
        let agent = format!("{variables} TORCHELASTIC_USE_AGENT_STORE=True");
        assert_eq!(world(&agent), Ok(Some(expected(3, 8, 1, "a", 29501))));
        let secret = world(&format!("{variables} FERROTYPE_SECRET=x")).unwrap().unwrap();
        assert_eq!(secret.secret.as_deref(), Some("x"));
        assert!(!format!("{secret:?}").contains("\"x\""));
    }

    #[test]
    fn slurm_is_understood() {
        let task = "SLURM_NTASKS=16 SLURM_PROCID=9 SLURM_LOCALID=1 SLURM_JOB_ID=1234567";
        for (more, address, port) in [
            ("SLURM_STEP_NODELIST=node[003-007,9]", "node003", 34567),
            ("SLURM_JOB_NODELIST=a,b SLURM_LAUNCH_NODE_IPADDR=10.0.0.1", "a", 34567),
            ("SLURM_LAUNCH_NODE_IPADDR=10.0.0.1", "10.0.0.1", 34567),
            ("SLURM_JOB_NODELIST=a,b MASTER_ADDR=m MASTER_PORT=77", "m", 77),
        ] {
            assert_eq!(world(&format!("{task} {more}")), Ok(Some(expected(9, 16, 1, address, port))), "{more}");
        }
        assert_eq!(world("SLURM_NTASKS=1 SLURM_PROCID=0 MASTER_ADDR=m"), Ok(None));
        assert_eq!(world("SLURM_JOB_ID=7"), Ok(None));
        assert_eq!(world(""), Ok(None));
    }

    #[test]
    fn how_many_ranks_a_machine_has_is_told_or_taken_to_be_all_of_them() {
        let torchrun = "RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 MASTER_ADDR=a MASTER_PORT=29500";
        let slurm = "SLURM_NTASKS=11 SLURM_PROCID=9 SLURM_LOCALID=1 SLURM_JOB_ID=1 SLURM_JOB_NODELIST=a";
        for (variables, local_size) in [
            (torchrun.to_owned(), 8),
            (format!("{torchrun} LOCAL_WORLD_SIZE=2"), 2),
            (slurm.to_owned(), 11),
            (format!("{slurm} SLURM_TASKS_PER_NODE=16"), 16),
            (format!("{slurm} SLURM_TASKS_PER_NODE=16 SLURM_STEP_TASKS_PER_NODE=3,4(x2)"), 4),
        ] {
            assert_eq!(world(&variables).unwrap().unwrap().local_size, local_size, "{variables}");
        }
    }

    #[test]
    fn half_of_it_is_an_error_that_names_the_rest() {
        for (variables, words) in [
            ("RANK=0", "RANK is set, but WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not"),
            (
                "MASTER_ADDR=a MASTER_PORT=1",
                "MASTER_ADDR, MASTER_PORT are set, but RANK, WORLD_SIZE, LOCAL_RANK are not",
            ),
            ("SLURM_NTASKS=4", "SLURM_NTASKS is set, but SLURM_PROCID, SLURM_LOCALID are not"),
            ("SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_ID=1", "SLURM_STEP_NODELIST"),
            ("SLURM_NTASKS=4 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=[", "SLURM_JOB_NODELIST = \"[\""),
            ("RANK=4 WORLD_SIZE=4 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1", "below the number of ranks, 4"),
            ("RANK=0 WORLD_SIZE=0 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1", "below the number of ranks, 0"),
            ("RANK=-1 WORLD_SIZE=4 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=1", "RANK = \"-1\""),
            ("RANK=0 WORLD_SIZE=4 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=70000", "MASTER_PORT = \"70000\""),
        ] {
            let error = world(variables).unwrap_err();
            assert!(error.contains(words), "{variables}: {error}");
        }
    }
}
