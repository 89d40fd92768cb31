BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('97727af70f4d');
CREATE TABLE experiment_tags (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	experiment_id INTEGER NOT NULL, 
	CONSTRAINT experiment_tag_pk PRIMARY KEY ("key", experiment_id), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id)
);
CREATE TABLE experiments (
	experiment_id INTEGER NOT NULL, 
	name VARCHAR(256) NOT NULL, 
	artifact_location VARCHAR(256), 
	lifecycle_stage VARCHAR(32), creation_time BIGINT, last_update_time BIGINT, 
	CONSTRAINT experiment_pk PRIMARY KEY (experiment_id), 
	CONSTRAINT experiments_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	UNIQUE (name)
);
INSERT INTO "experiments" VALUES(0,'Default','./mlruns/0','active',1796088329787,1796088329787);
INSERT INTO "experiments" VALUES(1,'churn','s3://models/churn','active',1796088329791,1796088329791);
CREATE TABLE "latest_metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT, 
	step BIGINT NOT NULL, 
	is_nan BOOLEAN NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT latest_metric_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "latest_metrics" VALUES('accuracy',0.81,1600000000000,0,0,'017a87a2828548c6b4d8617578c91470');
INSERT INTO "latest_metrics" VALUES('accuracy',0.84,1600000000000,0,0,'67dea3e3cc6d40e3a0611c4acf3d6a3b');
INSERT INTO "latest_metrics" VALUES('accuracy',0.9,1600000000000,0,0,'fe429a888a6e4bb5ab8daa57d593879f');
CREATE TABLE "metrics" (
	"key" VARCHAR(250) NOT NULL, 
	value FLOAT NOT NULL, 
	timestamp BIGINT NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	step BIGINT DEFAULT '0' NOT NULL, 
	is_nan BOOLEAN DEFAULT '0' NOT NULL, 
	CONSTRAINT metric_pk PRIMARY KEY ("key", timestamp, step, run_uuid, value, is_nan), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid), 
	CHECK (is_nan IN (0, 1))
);
INSERT INTO "metrics" VALUES('accuracy',0.81,1600000000000,'017a87a2828548c6b4d8617578c91470',0,0);
INSERT INTO "metrics" VALUES('accuracy',0.84,1600000000000,'67dea3e3cc6d40e3a0611c4acf3d6a3b',0,0);
INSERT INTO "metrics" VALUES('accuracy',0.9,1600000000000,'fe429a888a6e4bb5ab8daa57d593879f',0,0);
CREATE TABLE model_version_tags (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	name VARCHAR(256) NOT NULL, 
	version INTEGER NOT NULL, 
	CONSTRAINT model_version_tag_pk PRIMARY KEY ("key", name, version), 
	FOREIGN KEY(name, version) REFERENCES model_versions (name, version) ON UPDATE cascade
);
INSERT INTO "model_version_tags" VALUES('reviewed','yes','churn',1);
INSERT INTO "model_version_tags" VALUES('reviewed','yes','churn',2);
INSERT INTO "model_version_tags" VALUES('reviewed','yes','churn',3);
CREATE TABLE "model_versions" (
	name VARCHAR(256) NOT NULL, 
	version INTEGER NOT NULL, 
	creation_time BIGINT, 
	last_updated_time BIGINT, 
	description VARCHAR(5000), 
	user_id VARCHAR(256), 
	current_stage VARCHAR(20), 
	source VARCHAR(500), 
	run_id VARCHAR(32), 
	status VARCHAR(20), 
	status_message VARCHAR(500), 
	run_link VARCHAR(500), 
	CONSTRAINT model_version_pk PRIMARY KEY (name, version), 
	FOREIGN KEY(name) REFERENCES registered_models (name) ON UPDATE CASCADE
);
INSERT INTO "model_versions" VALUES('churn',1,1796088329837,1796088329875,NULL,NULL,'Archived','s3://models/churn/017a87a2828548c6b4d8617578c91470/artifacts/model','017a87a2828548c6b4d8617578c91470','READY',NULL,NULL);
INSERT INTO "model_versions" VALUES('churn',2,1796088329855,1796088329880,NULL,NULL,'Production','s3://models/churn/67dea3e3cc6d40e3a0611c4acf3d6a3b/artifacts/model','67dea3e3cc6d40e3a0611c4acf3d6a3b','READY',NULL,NULL);
INSERT INTO "model_versions" VALUES('churn',3,1796088329871,1796088329883,NULL,NULL,'Staging','s3://models/churn/fe429a888a6e4bb5ab8daa57d593879f/artifacts/model','fe429a888a6e4bb5ab8daa57d593879f','READY',NULL,NULL);
CREATE TABLE "params" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(500) NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT param_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "params" VALUES('rate','0.1','017a87a2828548c6b4d8617578c91470');
INSERT INTO "params" VALUES('rate','0.1','67dea3e3cc6d40e3a0611c4acf3d6a3b');
INSERT INTO "params" VALUES('rate','0.1','fe429a888a6e4bb5ab8daa57d593879f');
CREATE TABLE registered_model_tags (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	name VARCHAR(256) NOT NULL, 
	CONSTRAINT registered_model_tag_pk PRIMARY KEY ("key", name), 
	FOREIGN KEY(name) REFERENCES registered_models (name) ON UPDATE cascade
);
INSERT INTO "registered_model_tags" VALUES('owner','crm','churn');
CREATE TABLE registered_models (
	name VARCHAR(256) NOT NULL, 
	creation_time BIGINT, 
	last_updated_time BIGINT, 
	description VARCHAR(5000), 
	CONSTRAINT registered_model_pk PRIMARY KEY (name), 
	UNIQUE (name)
);
INSERT INTO "registered_models" VALUES('churn',1796088329830,1796088329883,'who leaves');
CREATE TABLE "runs" (
	run_uuid VARCHAR(32) NOT NULL, 
	name VARCHAR(250), 
	source_type VARCHAR(20), 
	source_name VARCHAR(500), 
	entry_point_name VARCHAR(50), 
	user_id VARCHAR(256), 
	status VARCHAR(9), 
	start_time BIGINT, 
	end_time BIGINT, 
	source_version VARCHAR(50), 
	lifecycle_stage VARCHAR(20), 
	artifact_uri VARCHAR(200), 
	experiment_id INTEGER, deleted_time BIGINT, 
	CONSTRAINT run_pk PRIMARY KEY (run_uuid), 
	CONSTRAINT runs_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	CONSTRAINT source_type CHECK (source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CHECK (status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING', 'KILLED'))
);
INSERT INTO "runs" VALUES('017a87a2828548c6b4d8617578c91470','bright-smelt-650','UNKNOWN','','','anna','RUNNING',1600000000000,NULL,'','active','s3://models/churn/017a87a2828548c6b4d8617578c91470/artifacts',1,NULL);
INSERT INTO "runs" VALUES('67dea3e3cc6d40e3a0611c4acf3d6a3b','persistent-smelt-642','UNKNOWN','','','anna','RUNNING',1600000000000,NULL,'','active','s3://models/churn/67dea3e3cc6d40e3a0611c4acf3d6a3b/artifacts',1,NULL);
INSERT INTO "runs" VALUES('fe429a888a6e4bb5ab8daa57d593879f','judicious-auk-407','UNKNOWN','','','anna','RUNNING',1600000000000,NULL,'','active','s3://models/churn/fe429a888a6e4bb5ab8daa57d593879f/artifacts',1,NULL);
CREATE TABLE "tags" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT tag_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "tags" VALUES('mlflow.user','anna','017a87a2828548c6b4d8617578c91470');
INSERT INTO "tags" VALUES('mlflow.runName','bright-smelt-650','017a87a2828548c6b4d8617578c91470');
INSERT INTO "tags" VALUES('mlflow.user','anna','67dea3e3cc6d40e3a0611c4acf3d6a3b');
INSERT INTO "tags" VALUES('mlflow.runName','persistent-smelt-642','67dea3e3cc6d40e3a0611c4acf3d6a3b');
INSERT INTO "tags" VALUES('mlflow.user','anna','fe429a888a6e4bb5ab8daa57d593879f');
INSERT INTO "tags" VALUES('mlflow.runName','judicious-auk-407','fe429a888a6e4bb5ab8daa57d593879f');
CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid);
CREATE INDEX index_latest_metrics_run_uuid ON latest_metrics (run_uuid);
CREATE INDEX index_tags_run_uuid ON tags (run_uuid);
CREATE INDEX index_params_run_uuid ON params (run_uuid);
COMMIT;
