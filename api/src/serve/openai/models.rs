//! `GET /v1/models`: the model under its true name.

use crate::output::ModelCard;
use crate::serve::app::App;
use crate::serve::error::{Failures, HttpError};
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

/// One name of the model.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The model's own name, also when it is served under another.
    root: String,
    /// Most tokens of a request, prompt and output together.
    max_model_len: usize,
    /// Digests, layout, device, numerics.
    #[schema(value_type = Object)]
    megatron: ModelCard,
}

/// All names.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelObject>,
}

fn object(app: &App, id: String) -> Result<ModelObject, HttpError> {
    let llm = app.llm()?;
    Ok(ModelObject {
        id,
        object: "model",
        created: app.created,
        owned_by: "megatron",
        root: llm.card().model.clone(),
        max_model_len: llm.max_sequence_length(),
        megatron: ModelCard::clone(&llm.card()),
    })
}

/// Lists the names.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = ModelList), Failures))]
pub(crate) async fn list(State(app): State<App>) -> Result<Json<ModelList>, HttpError> {
    let names: Vec<String> = app.names(app.llm()?).into_iter().map(str::to_owned).collect();
    let data = names.into_iter().map(|name| object(&app, name)).collect::<Result<_, _>>()?;
    Ok(Json(ModelList { object: "list", data }))
}

/// One of them.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models", params(("model" = String, Path, description = "The name.")),
    responses((status = 200, body = ModelObject), Failures))]
pub(crate) async fn one(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<ModelObject>, HttpError> {
    let name = app.served_name(app.llm()?, Some(&name))?;
    Ok(Json(object(&app, name)?))
}
