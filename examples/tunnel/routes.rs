//! Which route came from where: the command line, the file, or the control socket.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net};
use loden::route::{Route, RouteChange, RoutePublisher, RouteReader};

use crate::args::{Args, NextHopArg, RouteArg, parse_subnet};
use crate::report::{Limited, say};

/// The published routes and their origins.
pub(crate) struct Routes {
    publisher: RoutePublisher,
    origins: HashMap<IpNet, Origin>,
    file: Option<PathBuf>,
    port: u16,
    complaints: Limited,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    CommandLine,
    Control,
    File,
}

/// A good line of the file.
struct Line {
    number: usize,
    route: Route,
}

impl Routes {
    /// Those of the command line and of the file it names.
    pub(crate) fn of(args: &Args) -> Result<Self, String> {
        let mut routes = Self::new(args.listen.into(), args.subnet);
        routes.set_from_command_line(&args.route)?;
        if let Some(file) = &args.routes_file {
            routes.read_file(file.clone())?;
        }
        Ok(routes)
    }

    fn new(listen: SocketAddr, own_subnet: Ipv4Net) -> Self {
        let publisher = RoutePublisher::bound_to(listen).owning(own_subnet);
        Self { publisher, origins: HashMap::new(), file: None, port: listen.port(), complaints: Limited::new() }
    }

    pub(crate) fn reader(&self) -> RouteReader {
        self.publisher.reader()
    }

    pub(crate) fn len(&self) -> usize {
        self.publisher.table().len()
    }

    /// Takes the routes of the command line; one that cannot be a route is a mistake of whoever wrote it.
    fn set_from_command_line(&mut self, routes: &[RouteArg]) -> Result<(), String> {
        for RouteArg { subnet, next_hop } in routes {
            let route = Route::new(subnet.trunc(), next_hop.or_port(self.port));
            let applied = self.publisher.apply([RouteChange::Set(route)]);
            if let Some(refused) = applied.refused.first() {
                return Err(format!("--{refused}"));
            }
            self.origins.insert(route.subnet, Origin::CommandLine);
        }
        Ok(())
    }

    /// Takes the routes of a file for the first time. Bad lines are reported; a file that cannot be read is an error.
    fn read_file(&mut self, file: PathBuf) -> Result<(), String> {
        let text = read(&file).map_err(|error| format!("--routes-file {}: {error}", file.display()))?;
        self.file = Some(file);
        self.replace_from_file(&text);
        Ok(())
    }

    /// Replaces the routes that came from the file, and nothing else. If it cannot be read they stay.
    pub(crate) fn reread_file(&mut self) {
        let Some(file) = &self.file else { return say("SIGHUP: there is no --routes-file to read again") };
        match read(file) {
            Ok(text) => {
                self.replace_from_file(&text);
                say(&format!("SIGHUP: {} read again, {} routes in all", self.name(), self.len()));
            }
            Err(error) => say(&format!("SIGHUP: {}: {error}; its routes stay as they are", file.display())),
        }
    }

    /// Applies what came over the control socket, later changes over earlier ones and over all other origins. Returns how
    /// many routes were refused.
    pub(crate) fn set_from_control(&mut self, changes: impl Iterator<Item = RouteChange>) -> u64 {
        let changes: Vec<_> = changes.collect();
        let applied = self.publisher.apply(changes.iter().copied());
        for refused in &applied.refused {
            self.complaints.say(&format!("control: {refused}"));
        }
        let refused: HashSet<_> = applied.refused.iter().map(|refused| refused.route).collect();
        for change in changes {
            if let RouteChange::Delete(subnet) = change {
                self.origins.remove(&subnet.trunc());
            } else if let RouteChange::Set(route) = change
                && !refused.contains(&route)
            {
                self.origins.insert(route.subnet.trunc(), Origin::Control);
            }
        }
        applied.refused.len() as u64
    }

    fn replace_from_file(&mut self, text: &str) {
        let lines = self.good_lines(text);
        let of_file = |(subnet, origin): (&IpNet, &Origin)| (*origin == Origin::File).then_some(*subnet);
        let before: Vec<_> = self.origins.iter().filter_map(of_file).collect();
        let deletes =
            before.iter().filter(|subnet| !lines.contains_key(subnet)).map(|subnet| RouteChange::Delete(*subnet));
        let sets = lines.values().map(|line| RouteChange::Set(line.route));
        // One batch, hence one table: no packet sees a state between the old file and the new one.
        let applied = self.publisher.apply(deletes.chain(sets));
        for subnet in before {
            self.origins.remove(&subnet);
        }
        self.origins.extend(lines.keys().map(|subnet| (*subnet, Origin::File)));
        // A line that is no good any more takes the route with it that it once was.
        let refused = applied.refused.iter().map(|refused| refused.route.subnet);
        let _ = self.publisher.apply(refused.clone().map(RouteChange::Delete));
        for subnet in refused {
            self.origins.remove(&subnet);
        }
        let numbered =
            applied.refused.iter().map(|refused| (lines.get(&refused.route.subnet).map(|line| line.number), refused));
        let mut bad: Vec<_> = numbered.collect();
        bad.sort_by_key(|(number, _)| *number);
        for (number, refused) in bad {
            self.report_line(number.unwrap_or_default(), &refused.to_string());
        }
    }

    /// The lines that are routes and are the file's to set; the others are reported.
    fn good_lines(&self, text: &str) -> HashMap<IpNet, Line> {
        let mut lines = HashMap::<IpNet, Line>::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            match self.parse_line(line) {
                Ok(route) => {
                    if let Some(earlier) = lines.insert(route.subnet, Line { number, route }) {
                        let subnet = route.subnet;
                        self.report_line(
                            number,
                            &format!("{subnet} is on line {} too; this one counts", earlier.number),
                        );
                    }
                }
                Err(reason) => self.report_line(number, &reason),
            }
        }
        lines
    }

    fn parse_line(&self, line: &str) -> Result<Route, String> {
        let mut words = line.split_whitespace();
        let (Some(subnet), Some(next_hop), None) = (words.next(), words.next(), words.next()) else {
            return Err(format!("{line:?} is not SUBNET ADDR[:PORT]"));
        };
        let next_hop = next_hop.parse::<NextHopArg>()?.or_port(self.port);
        let route = Route::new(parse_subnet(subnet)?.trunc(), next_hop);
        match self.origins.get(&route.subnet) {
            Some(Origin::CommandLine) => Err(format!("the route of {subnet} was given on the command line and stays")),
            Some(Origin::Control) => Err(format!("the route of {subnet} was set over the control socket and stays")),
            Some(Origin::File) | None => Ok(route),
        }
    }

    fn report_line(&self, number: usize, reason: &str) {
        say(&format!("{} line {number}: {reason}", self.name()));
    }

    fn name(&self) -> String {
        self.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default()
    }
}

/// A file of lines; what is not text in one spoils that line alone.
fn read(file: &Path) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read(file)?).into_owned())
}
