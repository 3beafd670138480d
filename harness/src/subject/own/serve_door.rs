//! The door that the network uses: our HTTP server on a loopback port, asked over HTTP as any client asks it.

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::Result;
use crate::golden::GoldenCase;
use crate::subject::endpoint::{Address, Endpoint};
use crate::subject::own::Plan;
use crate::subject::own::facade::refused;
use crate::subject::own::facade_door::FacadeDoor;
use crate::subject::{Answered, Ask, Info, Subject};
use api::ServeConfig;
use api::serve::Server;
use std::time::Duration;

/// Longest that one answer may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// A server in one layout. Fields are dropped in this order: the server ends before the engines behind it.
pub(crate) struct ServeDoor {
    endpoint: Endpoint,
    server: Server,
    door: FacadeDoor,
}

impl ServeDoor {
    /// Starts engines and server, and tries the server out.
    pub fn new(plan: Plan) -> Result<Self> {
        let model = plan.model.clone();
        let door = FacadeDoor::new(plan)?;
        let config = ServeConfig { port: 0, ..ServeConfig::default() };
        let server = door.facade().serve(config).map_err(refused)?;
        let address = Address { url: server.url(), key: None, deadline: DEADLINE };
        Ok(Self { endpoint: Endpoint::new(&address, &model)?, server, door })
    }
}

impl Subject for ServeDoor {
    fn info(&self) -> Info {
        let mut info = self.door.info();
        info.details.insert("listens at".into(), self.server.url());
        info
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered> {
        let before = self.door.begin()?;
        let answers = self.endpoint.ask(ask);
        let mut witnesses = Witnesses::new();
        self.door.end(&before, &mut witnesses)?;
        Ok(Answered { answers, witnesses })
    }

    fn force(&mut self, case: &GoldenCase) -> std::result::Result<Forced, String> {
        self.door.force(case)
    }
}
