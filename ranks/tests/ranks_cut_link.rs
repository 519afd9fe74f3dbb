//! A network that is cut is noticed on both sides of the cut. Needs to be root, with `ip`, for machines of its own:
//!
//! ```text
//! hub: bridge ── veth ── node 1 (10.77.0.1)
//!             ── veth ── node 2 (10.77.0.2)
//!             ── veth ── node 3 (10.77.0.3)
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may fail by panicking, in its helpers too")]

mod rank_processes;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rank_processes::{Rank, SOON, said};
use ranks::{Group, Mesh, MeshOptions, World};

const LIMIT: Duration = Duration::from_secs(10);

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip {arguments}: {error}"))?;
    let words = || format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    if output.status.success() { Ok(()) } else { Err(words()) }
}

/// Network namespaces that are gone when it is dropped.
struct Nodes {
    name: String,
    count: usize,
}

impl Nodes {
    fn new(test: &str, count: usize) -> Result<Self, String> {
        let nodes = Self { name: format!("rk{test}{}", std::process::id()), count };
        let hub = nodes.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for number in 1..=count {
            let node = nodes.node(number);
            ip(&format!("netns add {node}"))?;
            ip(&format!("-n {hub} link add port{number} type veth peer name eth netns {node}"))?;
            ip(&format!("-n {hub} link set port{number} master bridge up"))?;
            ip(&format!("-n {node} addr add 10.77.0.{number}/24 dev eth"))?;
            ip(&format!("-n {node} link set eth up"))?;
            ip(&format!("-n {node} link set lo up"))?;
        }
        Ok(nodes)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn node(&self, number: usize) -> String {
        format!("{}-{number}", self.name)
    }

    /// Of the port at the hub: the node's own interface stays up, as where a cable is drawn behind a switch.
    fn cut(&self, number: usize) {
        ip(&format!("-n {} link set port{number} down", self.hub())).unwrap();
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        (1..=self.count).map(|number| self.node(number)).chain([self.hub()]).for_each(|name| {
            _ = ip(&format!("netns del {name}"));
        });
    }
}

#[test]
fn part() {
    if rank_processes::part().is_none() {
        return;
    }
    let world = World::from_environment().unwrap().unwrap();
    let mesh = Arc::new(Mesh::join(&world, MeshOptions::default()).unwrap());
    let group = Group::of_all(Arc::clone(&mesh), 0).unwrap();
    group.barrier().unwrap();
    eprintln!("joined");
    let mut data = vec![1.0; 1 << 20];
    let error = loop {
        if let Err(error) = group.all_reduce(&mut data) {
            break error;
        }
        data.fill(1.0);
    };
    eprintln!("error: {error}");
}

/// Ranks on these nodes; `node_to_cut` is cut off, and every rank has to say that one of those that it may name is lost.
fn cut(test: &str, nodes_of_ranks: &[usize], node_to_cut: usize, expected: impl Fn(usize, &str) -> bool) {
    let nodes = match Nodes::new(test, 3) {
        Ok(nodes) => nodes,
        Err(reason) => return println!("skipped: no network namespaces here ({reason})"),
    };
    let ranks: Vec<Rank> = nodes_of_ranks
        .iter()
        .enumerate()
        .map(|(rank, number)| {
            let world = World {
                rank,
                size: nodes_of_ranks.len(),
                local_rank: 0,
                local_size: 1,
                // The first node's own ranks come by a way of their own.
                master_address: if *number == nodes_of_ranks[0] { "localhost" } else { "10.77.0.1" }.to_owned(),
                master_port: 29_577,
                secret: None,
            };
            Rank::start("work", &world, &["ip", "netns", "exec", &nodes.node(*number)])
        })
        .collect();
    said(&ranks, "joined");
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    nodes.cut(node_to_cut);
    for rank in &ranks {
        let (at, line) = rank.line("error: ", SOON);
        println!("rank {}: {:.2?}: {line}", rank.world.rank, at - start);
        assert!(at - start < LIMIT);
        assert!(expected(rank.world.rank, &line), "rank {}: {line}", rank.world.rank);
    }
}

#[test]
fn one_node_of_three() {
    cut("a", &[1, 2, 3], 3, |rank, line| match rank {
        2 => line.contains("rank 0 is lost") && line.contains("the network of rank 2's machine may be cut"),
        _ => line.contains("rank 2 is lost: nothing came from it for 6.0 s"),
    });
}

#[test]
fn the_first_node_with_two_ranks() {
    cut("b", &[1, 1, 2, 3], 1, |rank, line| match rank {
        0 | 1 => line.contains("rank 2 is lost") || line.contains("rank 3 is lost"),
        _ => line.contains("rank 0 is lost") || line.contains("rank 1 is lost"),
    });
}
