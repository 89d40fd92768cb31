BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('3500859a5d39');
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
INSERT INTO "experiments" VALUES(0,'Default','/srv/0','active',1796088326820,1796088326820);
INSERT INTO "experiments" VALUES(1,'churn','s3://models/churn','active',1796088326821,1796088326821);
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
INSERT INTO "latest_metrics" VALUES('accuracy',0.81,1600000000000,0,0,'b5e6f16b26444d6bb17b1580746dc5aa');
INSERT INTO "latest_metrics" VALUES('accuracy',0.84,1600000000000,0,0,'dfec11930ec2441d9133ff10ab768028');
INSERT INTO "latest_metrics" VALUES('accuracy',0.9,1600000000000,0,0,'879a9066532044bfb7c519a6b073ccd4');
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
INSERT INTO "metrics" VALUES('accuracy',0.81,1600000000000,'b5e6f16b26444d6bb17b1580746dc5aa',0,0);
INSERT INTO "metrics" VALUES('accuracy',0.84,1600000000000,'dfec11930ec2441d9133ff10ab768028',0,0);
INSERT INTO "metrics" VALUES('accuracy',0.9,1600000000000,'879a9066532044bfb7c519a6b073ccd4',0,0);
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
INSERT INTO "model_versions" VALUES('churn',1,1796088326855,1796088326886,NULL,NULL,'Archived','s3://models/churn/b5e6f16b26444d6bb17b1580746dc5aa/artifacts/model','b5e6f16b26444d6bb17b1580746dc5aa','READY',NULL,NULL);
INSERT INTO "model_versions" VALUES('churn',2,1796088326870,1796088326892,NULL,NULL,'Production','s3://models/churn/dfec11930ec2441d9133ff10ab768028/artifacts/model','dfec11930ec2441d9133ff10ab768028','READY',NULL,NULL);
INSERT INTO "model_versions" VALUES('churn',3,1796088326883,1796088326895,NULL,NULL,'Staging','s3://models/churn/879a9066532044bfb7c519a6b073ccd4/artifacts/model','879a9066532044bfb7c519a6b073ccd4','READY',NULL,NULL);
CREATE TABLE "params" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(500) NOT NULL, 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT param_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "params" VALUES('rate','0.1','b5e6f16b26444d6bb17b1580746dc5aa');
INSERT INTO "params" VALUES('rate','0.1','dfec11930ec2441d9133ff10ab768028');
INSERT INTO "params" VALUES('rate','0.1','879a9066532044bfb7c519a6b073ccd4');
CREATE TABLE registered_model_aliases (
	alias VARCHAR(256) NOT NULL, 
	version INTEGER NOT NULL, 
	name VARCHAR(256) NOT NULL, 
	CONSTRAINT registered_model_alias_pk PRIMARY KEY (name, alias), 
	CONSTRAINT registered_model_alias_name_fkey FOREIGN KEY(name) REFERENCES registered_models (name) ON DELETE cascade ON UPDATE cascade
);
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
INSERT INTO "registered_models" VALUES('churn',1796088326849,1796088326895,'who leaves');
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
	CONSTRAINT source_type CHECK (source_type IN ('NOTEBOOK', 'JOB', 'LOCAL', 'UNKNOWN', 'PROJECT')), 
	CONSTRAINT runs_lifecycle_stage CHECK (lifecycle_stage IN ('active', 'deleted')), 
	FOREIGN KEY(experiment_id) REFERENCES experiments (experiment_id), 
	CHECK (status IN ('SCHEDULED', 'FAILED', 'FINISHED', 'RUNNING', 'KILLED'))
);
INSERT INTO "runs" VALUES('b5e6f16b26444d6bb17b1580746dc5aa','skillful-shad-982','UNKNOWN','','','anna','RUNNING',1600000000000,NULL,'','active','s3://models/churn/b5e6f16b26444d6bb17b1580746dc5aa/artifacts',1,NULL);
INSERT INTO "runs" VALUES('dfec11930ec2441d9133ff10ab768028','amusing-bass-710','UNKNOWN','','','anna','RUNNING',1600000000000,NULL,'','active','s3://models/churn/dfec11930ec2441d9133ff10ab768028/artifacts',1,NULL);
INSERT INTO "runs" VALUES('879a9066532044bfb7c519a6b073ccd4','adaptable-grouse-35','UNKNOWN','','','anna','RUNNING',1600000000000,NULL,'','active','s3://models/churn/879a9066532044bfb7c519a6b073ccd4/artifacts',1,NULL);
CREATE TABLE "tags" (
	"key" VARCHAR(250) NOT NULL, 
	value VARCHAR(5000), 
	run_uuid VARCHAR(32) NOT NULL, 
	CONSTRAINT tag_pk PRIMARY KEY ("key", run_uuid), 
	FOREIGN KEY(run_uuid) REFERENCES runs (run_uuid)
);
INSERT INTO "tags" VALUES('mlflow.user','anna','b5e6f16b26444d6bb17b1580746dc5aa');
INSERT INTO "tags" VALUES('mlflow.runName','skillful-shad-982','b5e6f16b26444d6bb17b1580746dc5aa');
INSERT INTO "tags" VALUES('mlflow.user','anna','dfec11930ec2441d9133ff10ab768028');
INSERT INTO "tags" VALUES('mlflow.runName','amusing-bass-710','dfec11930ec2441d9133ff10ab768028');
INSERT INTO "tags" VALUES('mlflow.user','anna','879a9066532044bfb7c519a6b073ccd4');
INSERT INTO "tags" VALUES('mlflow.runName','adaptable-grouse-35','879a9066532044bfb7c519a6b073ccd4');
CREATE INDEX index_metrics_run_uuid ON metrics (run_uuid);
CREATE INDEX index_latest_metrics_run_uuid ON latest_metrics (run_uuid);
CREATE INDEX index_tags_run_uuid ON tags (run_uuid);
CREATE INDEX index_params_run_uuid ON params (run_uuid);
COMMIT;
