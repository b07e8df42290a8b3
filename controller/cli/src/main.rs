//! `ferry`, the command line of operators. It asks the controller, shows what comes back, and ends
//! with a code that scripts can tell apart. It decides nothing about moves, and knows neither
//! agents nor the store: everything comes through the operators' service.

mod args;
mod ask;
mod board;
mod commands;
mod connection;
mod exit;
mod follow;
mod meter;
mod plan_text;
mod plan_view;
mod screen;
mod summary;
mod text;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::exit::{Exit, Failure};
use crate::screen::Screen;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let screen = Screen::new(cli.global.json);
    let exit = match run(cli, &screen) {
        Ok(exit) => exit,
        Err(failure) => screen.failure(&failure),
    };
    ExitCode::from(exit as u8)
}

fn run(cli: Cli, screen: &Screen) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::io("the program cannot start", &e))?;
    let result = runtime.block_on(commands::run(cli, screen));
    // A question that was interrupted may still be reading from the terminal in its thread.
    runtime.shutdown_background();
    result
}
